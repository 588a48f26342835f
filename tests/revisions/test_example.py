"""The example of docs/migrations.md. tests/test_revisions.py checks its revisions like all others."""

from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory

from tests.support.processes import ROOT

EXAMPLE = ScriptDirectory.from_config(Config(ROOT / "docs/rename/alembic.ini"))


def test_the_documentation_lists_its_revisions() -> None:
    documentation = (ROOT / "docs/migrations.md").read_text()
    for revision in EXAMPLE.iterate_revisions("rename_7", "rename_1", inclusive=True):
        assert f"rename/{Path(revision.path).name}" in documentation
        assert revision.doc.rstrip(".") in documentation
