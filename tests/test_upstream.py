"""The scripts in docs/upstream.md show the faults of the installed versions. One that fails here may be resolved."""

import re
import sys
from importlib.metadata import version

import pytest
from sqlalchemy import URL

from tests.support.processes import ROOT, free_port, render_url, run

pytestmark = pytest.mark.slow

SECTIONS = re.split(r"^## ", (ROOT / "docs" / "upstream.md").read_text(), flags=re.MULTILINE)


def test_the_issues_are_about_the_installed_versions() -> None:
    (listed,) = re.findall(r"^Versions: (.*?)\. Times", SECTIONS[0], re.MULTILINE | re.DOTALL)
    named: dict[str, str] = dict(re.findall(r"(\w+) (\d\S*[\db])", listed))
    assert len(named) > 7
    for name, expected in named.items():
        package = {"OpenTelemetry": "opentelemetry-sdk", "instrumentation": "opentelemetry-instrumentation"}.get(name)
        assert f"{version(package or name)}.".startswith(f"{expected}."), name


def output(title: str, **replaced: str) -> str:
    """Run the script of a section, with what is replaced in it, and return what it prints."""
    (section,) = [section for section in SECTIONS if section.startswith(title)]
    (script,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    for old, new in replaced.items():
        assert old in script
        script = script.replace(old, new)
    return run(sys.executable, "-c", script, changes={}).stdout


def test_a_statement_fails_once_after_a_migration(postgres_url: URL) -> None:
    url = render_url(postgres_url.set(drivername="postgresql+asyncpg"))
    printed = output("SQLAlchemy: execute a statement again", **{"postgresql+asyncpg://localhost/test": url})
    assert "cached statement plan is invalid" in printed


def test_the_body_of_a_request_with_an_upgrade_is_run_as_a_request() -> None:
    printed = output("uvicorn: the body of a request", **{"8001": str(free_port())})
    assert "POST /outer b''\n" in printed
    assert "DELETE /inner b''\n" in printed


def test_a_trailer_is_reported_as_a_header() -> None:
    before, after = output("uvicorn: trailers").splitlines()
    assert "If-Match" not in before
    assert "If-Match" in after


def test_a_flush_takes_longer_than_its_timeout() -> None:
    assert float(output("OpenTelemetry: the timeout").splitlines()[-1]) > 0.6
