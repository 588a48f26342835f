"""The pages in docs say what is true of the service."""

import ast
import io
import json
import logging
import re
from collections.abc import Iterator
from inspect import getsource
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from app.errors import FULL, PROBLEMS
from app.log_config import JSONFormatter, RequestFilter, TextFormatter
from app.settings import Settings
from migrations.distribute import distributed_tables
from tests.support.heroes import DEADPOND
from tests.support.processes import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
SOURCE = "".join(path.read_text() for path in sorted((ROOT / "app").rglob("*.py")))
UPGRADES = "".join(path.read_text() for path in sorted((ROOT / "migrations").rglob("*.py"))) + SOURCE
UNAVAILABLE = {
    *("KeyExpiredError", "PoolClosedError", "PoolUnavailableError", "QueueFullError", "QueueTimeoutError"),
    *("SchemaUnavailableError", "ShuttingDownError"),
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the names that the headings of a page are linked by."""
    titles = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_to_a_file_leads_to_it_and_to_a_heading_of_it(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "code", without_code(page))):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            found = (page.parent / path).resolve() if path else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target


def settings_docstrings() -> dict[str, str]:
    """Return the docstring below each field of the settings, in one line.

    pydantic could make them descriptions, but takes 60 ms of each start to find them on Python 3.11 and 3.12.
    """
    (settings,) = (node for node in ast.walk(ast.parse(getsource(Settings))) if isinstance(node, ast.ClassDef))
    return {
        ast.unparse(field.target): " ".join(str(ast.literal_eval(docstring.value)).split())
        for field, docstring in pairwise(settings.body)
        if isinstance(field, ast.AnnAssign) and isinstance(docstring, ast.Expr)
    }


def test_operations_lists_every_setting_with_its_default_its_description_and_a_reason() -> None:
    descriptions = settings_docstrings()
    for setting, field in Settings.model_fields.items():
        default = "none" if field.default in {(), None} else f"`{field.default}`"
        row = f"| `{setting.upper()}` | {default} | {descriptions[setting]} | "
        assert re.search(rf"^{re.escape(row)}\S.* \|$", OPERATIONS, re.MULTILINE), row


def details_of_503() -> Iterator[str]:
    """Yield each text that a 503 of the service has as its detail, as far as it is written in one place."""
    yield FULL
    yield PROBLEMS[503][1]
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in UNAVAILABLE:
            yield from (str(each.value) for each in node.args if isinstance(each, ast.Constant))


def test_operations_explains_every_503() -> None:
    details = set(details_of_503())
    assert len(details) > 7
    for detail in details:
        assert f"| {detail} | " in OPERATIONS


def test_what_operations_lets_an_alert_look_for_in_the_metrics_is_exported() -> None:
    alerts = "".join(re.findall(r"^\| \[.*$", OPERATIONS, re.MULTILINE))
    metrics = set(re.findall(r"`([a-z]+(?:\.[a-z_]+)+)`", alerts)) - {"http.server.request.duration"}  # FastAPI's own
    assert len(metrics) > 2
    for metric in metrics:
        assert f'"{metric}"' in SOURCE


def test_what_operations_lets_an_alert_look_for_in_the_log_is_logged() -> None:
    alerts = re.findall(r"^\| \[.*?log: (.*?) \|", OPERATIONS, re.MULTILINE)
    assert len(alerts) > 7
    for text in re.findall(r"`(.*?)`", " ".join(alerts)):
        assert text in SOURCE, text


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of a page in a language, without their indentation."""
    found = re.findall(
        rf"^( *)```{language}\n(.*?)^\1```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL
    )
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def without_digits(line: str) -> str:
    """Replace what differs from request to request: ids and numbers."""
    return re.sub(r"\d+(\.\d+)?", "0", re.sub(r"\b[0-9a-f]{32}\b", "id", line))


@pytest.fixture
def written() -> Iterator[list[io.StringIO]]:
    """The access log as JSON and as text, which marks its records."""
    logger = logging.getLogger("app.access")
    handlers = [logging.StreamHandler(io.StringIO()) for _ in range(2)]
    for handler, formatter in zip(handlers, (JSONFormatter(), TextFormatter()), strict=True):
        handler.addFilter(RequestFilter())
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield [handler.stream for handler in handlers]
    for handler in handlers:
        logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


async def test_the_log_lines_in_operations_are_those_of_a_request(
    client: httpx.AsyncClient, written: list[io.StringIO]
) -> None:
    await client.post("/heroes/", json=DEADPOND)
    await client.get("/heroes/1")
    (shown,) = blocks("operations.md", "")
    for line, stream in zip(reversed(shown.splitlines()), written, strict=True):
        assert without_digits(line) == without_digits(stream.getvalue().splitlines()[-1])


async def test_the_errors_in_errors_are_those_of_a_missing_hero(client: httpx.AsyncClient) -> None:
    for shown, accepted in zip(blocks("errors.md", "json"), ("*/*", "application/problem+json"), strict=True):
        assert (await client.get("/heroes/1", headers={"Accept": accepted})).json() == json.loads(shown)


def test_migrations_shows_what_a_failed_upgrade_says() -> None:
    (table,) = re.findall(
        r"^\| message \| remedy \|\n(.*?)^$", (ROOT / "docs/migrations.md").read_text(), re.MULTILINE | re.DOTALL
    )
    messages = re.findall(
        r"`([^`]*)`(?= or |[^|]* \| )", "".join(re.findall(r"^\| (?!---).*? \| ", table, re.MULTILINE))
    )
    assert len(messages) > 8
    for message in messages:
        said = ".*?".join(re.escape(part) for part in re.split("…|600|hero|a lock|, ", message))
        assert re.search(said, UPGRADES, re.DOTALL), message


def test_scaling_shows_what_the_distribution_prints() -> None:
    (shown,) = blocks("scaling.md", "console")
    assert shown.splitlines()[1:] == [
        f"{table}: distributed by {column}." for table, column in distributed_tables().items()
    ]


def test_scaling_shows_the_warning_of_too_many_connections() -> None:
    (shown,) = re.findall(
        r"^    (Requests may get 503: (?:.*\n)+?)\n", (ROOT / "docs/scaling.md").read_text(), re.MULTILINE
    )
    said = re.sub(r"(?<!get )\b\d+|server", "%s", " ".join(shown.split()))
    assert said in re.sub(r'"\s*"', "", SOURCE)
