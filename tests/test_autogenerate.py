"""Autogenerate: revisions for changed models run online, and leave no difference."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from sqlalchemy import URL, text

from app.urls import is_sqlite
from tests.support.alembic_commands import BASE, HEAD, alembic_config
from tests.support.processes import render_url, run
from tests.support.project import copy_project
from tests.support.sql import describe_schema, execute, run_in_transaction

# Several Alembic commands in one process, which imports the models once.
SESSION = """
import shlex, sys
from alembic.config import main
for line in sys.argv[1:]:
    print("$ alembic", line, flush=True)
    main(argv=shlex.split(line))
"""
GENERATE = "revision --autogenerate --message Change"
CLEAN = "No new upgrade operations detected."

SECRET_NAME = "    secret_name: str\n"
POWER = "    power: str | None = Field(default=None, index=True)\n"
TABLE_ARGS = "    __table_args__ = (\n"
AGE_INDEX = '        Index("ix_hero_age_id", "age", "id"),\n'
PUBLIC = "class HeroPublic("
TEAM = """class Team(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(index=True, max_length=80)
    motto: str | None = Field(default=None, unique=True)


"""
RANK = """class Rank(enum.Enum):
    high = 1
    low = 2


"""
PARTIAL_INDEX = """\
        Index("ix_hero_old", "name", postgresql_where=sa.text("age > 60"), sqlite_where=sa.text("age > 60")),
"""


class Change(NamedTuple):
    """A change to the models, as replacements in their file, and what each revision of it has in its upgrade.

    `before` is a change that an earlier release has made.
    """

    replacements: dict[str, str]
    upgrades: Sequence[tuple[str, ...]]
    before: dict[str, str] = {}  # noqa: RUF012 - it is never changed


CHANGES = {
    "a new column that is nullable": Change(
        {SECRET_NAME: SECRET_NAME + "    power: str | None = None\n"},
        [("sa.Column('power', sa.String(), nullable=True)",)],
    ),
    "a new column with a server default": Change(
        {
            SECRET_NAME: SECRET_NAME
            + "    power: str = Field(default='', max_length=50, sa_column_kwargs={'server_default': ''})\n"
            + "    luck: int = Field(default=10, sa_column_kwargs={'server_default': '10'})\n"
        },
        [
            (
                "sa.Column('power', sa.String(length=50), server_default=",
                "sa.Column('luck', sa.Integer(), server_default=",
            )
        ],
    ),
    "a new column with an index": Change(
        {SECRET_NAME: SECRET_NAME + POWER},
        [
            ("sa.Column('power', sa.String(), nullable=True)",),
            ("online.create_index(op.f('ix_hero_power'), 'hero', ['power'], unique=False)",),
        ],
    ),
    "a new column with a foreign key to a new table": Change(
        {
            SECRET_NAME: SECRET_NAME
            + "    team_id: int | None = Field(default=None, foreign_key='team.id', ondelete='SET NULL')\n",
            PUBLIC: TEAM + PUBLIC,
        },
        [("op.create_table('team'", "'hero_team_id_fkey'), 'team', ['team_id'], ['id'], ondelete='SET NULL'")],
    ),
    "a new index": Change(
        {SECRET_NAME: "    secret_name: str = Field(index=True)\n"},
        [("online.create_index(op.f('ix_hero_secret_name'), 'hero', ['secret_name'], unique=False)",)],
    ),
    "a new index that is unique": Change(
        {SECRET_NAME: "    secret_name: str = Field(index=True, unique=True)\n"},
        [("online.create_index(op.f('ix_hero_secret_name'), 'hero', ['secret_name'], unique=True)",)],
    ),
    "a new partial index": Change(
        {TABLE_ARGS: TABLE_ARGS + PARTIAL_INDEX, "from typing": "import sqlalchemy as sa\nfrom typing"},
        [("online.create_index('ix_hero_old', 'hero', ['name'], unique=False, postgresql_where=sa.text(",)],
    ),
    "a dropped index": Change(
        {AGE_INDEX: ""},
        [("online.drop_index(op.f('ix_hero_age_id'), table_name='hero')",)],
    ),
    "an index that becomes unique": Change(
        {AGE_INDEX: AGE_INDEX.replace(")", ", unique=True)")},
        [
            ("online.drop_index(op.f('ix_hero_age_id'), table_name='hero')",),
            ("online.create_index('ix_hero_age_id', 'hero', ['age', 'id'], unique=True)",),
        ],
    ),
    "a dropped column with an index": Change(
        {POWER: ""},
        [("online.drop_index(op.f('ix_hero_power'), table_name='hero')",), ("batch_op.drop_column('power')",)],
        before={SECRET_NAME: SECRET_NAME + POWER},
    ),
    "a column that becomes nullable": Change(
        {SECRET_NAME: "    secret_name: str | None\n"},
        [("batch_op.alter_column('secret_name'", "nullable=True)")],
    ),
    "a new table with an Enum": Change(
        {
            PUBLIC: RANK + TEAM.replace("    motto", "    rank: Rank\n    motto") + PUBLIC,
            "from typing": "import enum\nfrom typing",
        },
        [("op.create_table('team'", "sa.Enum('high', 'low', name='rank')")],
    ),
    "a new table with an index": Change(
        {PUBLIC: TEAM + PUBLIC},
        [("op.create_table('team'", "batch_op.create_index(batch_op.f('ix_team_name'), ['name'], unique=False)")],
    ),
}
ROWS = text("SELECT id, name FROM hero ORDER BY id")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the application and its migrations."""
    return copy_project(tmp_path / "project", "bench", "docs", "tests")


@pytest.fixture
def url(url: URL) -> URL:
    """A database with two heroes."""
    execute(url, "INSERT INTO hero (name, age, secret_name) VALUES ('Deadpond', NULL, 'x'), ('Rusty-Man', 48, 'y')")
    return url


def change_models(project: Path, replacements: dict[str, str]) -> None:
    models = project / "app/heroes/models.py"
    source = models.read_text()
    for old, new in replacements.items():
        assert old in source
        source = source.replace(old, new, 1)
    models.write_text(source)


def try_session(project: Path, url: URL, *commands: str) -> CompletedProcess[str]:
    return run(sys.executable, "-c", SESSION, *commands, cwd=project, changes={"DATABASE_URL": render_url(url)})


def session(project: Path, url: URL, *commands: str) -> str:
    """Run Alembic commands, which must succeed, and return their output."""
    result = try_session(project, url, *commands)
    assert result.returncode == 0, result.stdout
    return result.stdout


def script_of(project: Path) -> ScriptDirectory:
    return ScriptDirectory.from_config(Config(project / "alembic.ini"))


def generated(project: Path, base: str = HEAD) -> list[Script]:
    """The new revisions, in the order in which they run."""
    return list(script_of(project).iterate_revisions("head", base))[::-1]


def source_of(revision: Script) -> str:
    return Path(revision.path).read_text()


def upgrade_of(revision: Script) -> str:
    return source_of(revision).partition("def upgrade()")[2].partition("def downgrade()")[0]


def downgrade_of(revision: Script) -> str:
    return source_of(revision).partition("def downgrade()")[2]


def modules_of(statements: str) -> set[str]:
    """Return the modules whose operations are called: `op`, `online` or both."""
    return set(re.findall(r"^\s+(?:with )?(op|online)\.", statements, re.MULTILINE))


def rows(url: URL) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = run_in_transaction(
        url, lambda connection: [(row.id, row.name) for row in connection.execute(ROWS)]
    )
    return found


@pytest.mark.slow
class TestGenerated:
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_a_generated_revision_runs_up_and_down_and_leaves_no_difference(
        self, url: URL, project: Path, change: Change
    ) -> None:
        found = rows(url)
        if change.before:
            change_models(project, change.before)
            session(project, url, "revision --autogenerate --message Before", "upgrade head")
        base = script_of(project).get_current_head()
        assert base
        change_models(project, change.replacements)
        down = f"-x lose-data downgrade {base}"
        said = session(project, url, GENERATE, "upgrade head", "check", down, "upgrade head", "check")
        assert said.count(CLEAN) == 2
        assert rows(url) == found
        revisions = generated(project, base)
        assert len(revisions) == len(change.upgrades)
        for revision, fragments in zip(revisions, change.upgrades, strict=True):
            source = source_of(revision)
            compile(source, revision.path, "exec")
            assert "sqlmodel" not in source
            for fragment in fragments:
                assert fragment in upgrade_of(revision)
            assert len(modules_of(upgrade_of(revision))) == 1, "online operations have a revision of their own"
            assert modules_of(downgrade_of(revision)) == modules_of(upgrade_of(revision))

    @pytest.mark.parametrize(
        "options",
        [
            pytest.param("--message Change", id="a short message"),
            pytest.param(f"--message 'Change what is described {'in many words ' * 4}'", id="a long message"),
            pytest.param(f"--message Change --head {HEAD}", id="an explicit head"),
        ],
    )
    def test_files_sort_in_the_order_of_the_revisions(self, sqlite_url: URL, project: Path, options: str) -> None:
        change_models(project, {AGE_INDEX: "", SECRET_NAME: SECRET_NAME + POWER})
        session(project, sqlite_url, f"revision --autogenerate {options}", "upgrade head", "check")
        names = [Path(revision.path).name for revision in generated(project)]
        assert len(names) == 3
        assert names == sorted(names)

    def test_the_first_of_several_revisions_has_the_branch_label(self, sqlite_url: URL, project: Path) -> None:
        change_models(project, {SECRET_NAME: SECRET_NAME + POWER})
        session(project, sqlite_url, f"{GENERATE} --branch-label strong", "upgrade head", "check")
        found = ["branch_labels = ('strong',)" in source_of(revision) for revision in generated(project)]
        assert found == [True, False]

    def test_a_revision_without_a_message_is_refused_or_uses_online_operations(
        self, sqlite_url: URL, project: Path
    ) -> None:
        change_models(project, CHANGES["a new index"].replacements)
        result = try_session(project, sqlite_url, "revision --autogenerate")
        assert "Traceback" not in result.stdout
        if result.returncode == 0:
            (revision,) = generated(project)
            assert "online.create_index(" in upgrade_of(revision)
        else:
            assert not generated(project)


@pytest.mark.slow
class TestNotGenerated:
    def test_a_new_not_null_column_without_a_default_is_refused(self, url: URL, project: Path) -> None:
        change_models(project, {SECRET_NAME: SECRET_NAME + "    power: str\n"})
        files = sorted(project.glob("migrations/versions/*.py"))
        result = try_session(project, url, GENERATE)
        assert result.returncode != 0
        assert "FAILED: hero.power is NOT NULL: give it a server_default in the model" in result.stdout
        assert "Traceback" not in result.stdout
        assert sorted(project.glob("migrations/versions/*.py")) == files

    def test_check_lists_all_differences(self, sqlite_url: URL, project: Path) -> None:
        change_models(
            project, {AGE_INDEX: "", SECRET_NAME: "    secret_name: str = Field(index=True)\n    power: str\n"}
        )
        result = try_session(project, sqlite_url, "check")
        assert result.returncode != 0
        assert "FAILED: New upgrade operations detected: " in result.stdout
        for name in ("ix_hero_age_id", "ix_hero_secret_name", "'power'"):
            assert name in result.stdout
        assert "Traceback" not in result.stdout


@pytest.mark.slow
class TestOtherApplications:
    THEIRS = (
        "CREATE TABLE their_team (id INTEGER PRIMARY KEY, name VARCHAR(30) NOT NULL UNIQUE)",
        "CREATE INDEX ix_their_team_name ON their_team (name)",
        (
            "CREATE TABLE their_member (id INTEGER PRIMARY KEY, since DATE DEFAULT CURRENT_DATE CHECK (id > 0),"
            " team_id INTEGER NOT NULL REFERENCES their_team (id) ON DELETE CASCADE,"
            " hero_id INTEGER REFERENCES hero (id) ON DELETE CASCADE)"
        ),
        "CREATE UNIQUE INDEX ix_their_member_hero_id ON their_member (hero_id)",
        "INSERT INTO their_team (id, name) VALUES (1, 'Preventers')",
        "INSERT INTO their_member (id, since, team_id, hero_id) VALUES (1, '2026-11-22', 1, 1), (2, NULL, 1, NULL)",
    )

    def theirs(self, url: URL) -> list[Any]:
        """The schema and the rows of the other tables."""
        return [
            *[table for name, table in describe_schema(url).items() if name.startswith("their_")],
            *run_in_transaction(
                url, lambda connection: connection.execute(text("SELECT * FROM their_team ORDER BY id")).all()
            ),
            *run_in_transaction(
                url, lambda connection: connection.execute(text("SELECT * FROM their_member ORDER BY id")).all()
            ),
        ]

    def test_other_tables_are_no_difference(self, url: URL) -> None:
        execute(url, *self.THEIRS)
        command.check(alembic_config(url))

    def test_generated_revisions_leave_other_tables_unchanged(self, url: URL, project: Path) -> None:
        execute(url, *self.THEIRS)
        found = self.theirs(url)
        assert len(found) == 5
        changes = CHANGES["a dropped index"], CHANGES["a column that becomes nullable"]
        change_models(project, changes[0].replacements | changes[1].replacements)
        session(project, url, GENERATE, "upgrade head", "check")
        for revision in generated(project):
            assert "their_" not in source_of(revision)
        assert self.theirs(url) == found
        session(project, url, f"-x lose-data downgrade {BASE}", "upgrade head")
        assert self.theirs(url) == found
        on_delete = ["PRAGMA foreign_keys = ON"] if is_sqlite(url) else []
        execute(url, *on_delete, "DELETE FROM hero WHERE id = 1")
