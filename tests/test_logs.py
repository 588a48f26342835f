"""The log: one format for the service and for its migrations, and nobody silences anybody."""

import logging
import re
import sys
from pathlib import Path

from sqlalchemy import URL

from tests.conftest import migrate
from tests.migrating import alembic
from tests.processes import ROOT, run
from tests.services import launched

LINE = re.compile(r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR) [a-z_.]+: \S")


def test_the_service_logs_in_the_format(empty_url: URL, tmp_path: Path) -> None:
    with launched(empty_url, tmp_path / "log"):
        pass
    lines = (tmp_path / "log").read_text().splitlines()
    (own,) = [line for line in lines if "alembic upgrade head" in line]
    assert LINE.match(own)
    assert " WARNING app.schema: " in own


def test_migrations_log_in_the_same_format(empty_url: URL) -> None:
    lines = alembic(empty_url, "upgrade", "head").splitlines()
    assert any("INFO alembic.runtime.migration: Running upgrade  -> 0001" in line for line in lines)
    assert all(LINE.match(line) for line in lines)


def test_a_migration_within_a_process_leaves_its_loggers_as_they_are(empty_url: URL) -> None:
    known = logging.getLogger("somebody.else")
    known.setLevel(logging.DEBUG)
    handlers, level = list(logging.root.handlers), logging.root.level
    migrate(empty_url)
    assert logging.root.handlers == handlers
    assert logging.root.level == level
    assert known.level == logging.DEBUG
    assert not any(
        logger.disabled for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)
    )


def test_a_process_that_has_decided_where_logs_go_keeps_its_format() -> None:
    code = (
        "import logging; logging.basicConfig(format='mine %(message)s', level=logging.ERROR);"
        "from app import logs; logs.install(); logging.warning('quiet'); logging.error('loud')"
    )
    result = run(sys.executable, "-c", code, cwd=ROOT, changes={})
    assert result.stdout == "mine loud\n"
