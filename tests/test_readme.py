"""The README, the session in docs/http.md and the map in docs/tour.md show what there is."""

import argparse
import re
import shlex
from collections.abc import Iterator

import httpx
import pytest

from tests.support.processes import ROOT

README = (ROOT / "README.md").read_text()
HTTP = (ROOT / "docs/http.md").read_text()
TOUR = (ROOT / "docs/tour.md").read_text()


def read_curl(command: str) -> argparse.Namespace:
    """Parse the options of curl that the README uses, and the pattern of the grep that it pipes to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-X", dest="method")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-i", dest="with_headers", action="store_true")
    parser.add_argument("-I", dest="head", action="store_true")
    parser.add_argument("-o", dest="file")
    parser.add_argument("-w", dest="format")
    parser.add_argument("--json")
    parser.add_argument("url")
    curl, _, grep = command.partition(" | ")
    options = parser.parse_args(shlex.split(curl)[1:])
    options.pattern = shlex.split(grep)[-1] if grep else ""
    return options


async def printed(client: httpx.AsyncClient, command: str) -> str:
    """Return the output of a command."""
    options = read_curl(command)
    method = "HEAD" if options.head else options.method or ("GET" if options.json is None else "POST")
    headers = [tuple(header.split(": ", 1)) for header in [*options.headers, "Content-Type: application/json"]]
    response = await client.request(method, options.url, content=options.json, headers=headers)
    if options.format:
        assert options.format == "%{http_code}"
        return f"{response.status_code}\n"
    lines = response.text.splitlines()
    if options.with_headers or options.head:
        lines = [f"{name}: {value}" for name, value in response.headers.items()] + lines
    return "".join(f"{line}\n" for line in lines if re.search(options.pattern, line, re.IGNORECASE))


@pytest.mark.parametrize("page", [README, HTTP], ids=["README", "http"])
async def test_the_commands_print_what_the_page_shows(client: httpx.AsyncClient, page: str) -> None:
    session = re.findall(r"^\$ (curl .*)\n((?:(?!\$|```).*\n)+)", page, re.MULTILINE)
    assert len(session) == page.count("$ curl ") > 5
    for command, output in session:
        assert await printed(client, command) == output


def test_the_readme_is_short() -> None:
    assert README.count("\n") < 200


def test_the_handler_in_the_readme_is_that_of_the_code() -> None:
    (handler,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert handler in (ROOT / "app/heroes/routes.py").read_text()


def paths_on_the_map() -> Iterator[str]:
    """Yield each path on the map, whose indentation stands for folders."""
    (drawn,) = re.findall(r"^## Map of the files\n\n```\n(.*?)^```", TOUR, re.MULTILINE | re.DOTALL)
    folders: list[str] = []
    for line in drawn.splitlines():
        indent, name = re.fullmatch(r"( *)(\S+).*", line, re.DOTALL).groups()  # type: ignore[union-attr]  # the pattern matches every line
        folders[len(indent) // 2 :] = [name]
        if len(indent) <= 4:
            yield "".join(folders)


def test_every_file_on_the_map_exists() -> None:
    assert [path for path in paths_on_the_map() if not (ROOT / path).exists()] == []


def test_every_file_of_the_app_is_on_the_map() -> None:
    for path in (ROOT / "app").rglob("*.py"):
        assert path.name == "__init__.py" or f" {path.name} " in TOUR
