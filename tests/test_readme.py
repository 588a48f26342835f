"""What the README prints is what the service answers."""

import argparse
import re
import shlex
from collections.abc import Iterator

import httpx
import pytest

from tests.processes import ROOT

README = (ROOT / "README.md").read_text()


def curl(command: str) -> httpx.Request:
    """Read the few options of curl that the README uses."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-X", dest="method")
    parser.add_argument("--json")
    parser.add_argument("url")
    options = parser.parse_args(shlex.split(command)[1:])
    method = options.method or ("GET" if options.json is None else "POST")
    return httpx.Request(method, options.url, content=options.json, headers={"Content-Type": "application/json"})


async def test_the_session_gives_the_answers_that_are_printed(client: httpx.AsyncClient) -> None:
    session = re.findall(r"^\$ (curl .*)\n(.*)$", README, re.MULTILINE)
    assert len(session) == README.count("$ curl ")
    for command, answer in session:
        assert (await client.send(curl(command))).text == answer


def paths_on_the_map() -> Iterator[str]:
    """Each file that the map has, with the folders that it is indented under."""
    (drawn,) = re.findall(r"^## Map of the files\n\n```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    folders: list[str] = []
    for line in drawn.splitlines():
        indent, name = re.fullmatch(r"( *)(\S+).*", line, re.DOTALL).groups()  # type: ignore[union-attr]  # it matches all
        folders[len(indent) // 2 :] = [name]
        if len(indent) <= 4:
            yield "".join(folders)


@pytest.mark.parametrize("path", list(paths_on_the_map()))
def test_every_file_on_the_map_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_file_of_the_app_is_on_the_map() -> None:
    for path in (ROOT / "app").rglob("*.py"):
        assert path.name == "__init__.py" or f" {path.name} " in README


def test_every_target_it_names_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)`", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
