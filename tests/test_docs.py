"""The pages in docs say what is true of the service."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import FULL, PROBLEMS
from app.settings import Settings
from tests.support.processes import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
SOURCE = "".join(path.read_text() for path in sorted((ROOT / "app").rglob("*.py")))
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


def test_operations_lists_every_setting_with_its_default_its_description_and_a_reason() -> None:
    for setting, field in Settings.model_fields.items():
        default = "none" if field.default in {(), None} else f"`{field.default}`"
        row = f"| `{setting.upper()}` | {default} | {field.description} | "
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
