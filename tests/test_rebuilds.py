"""Rebuilds on SQLite: what a table keeps when it is made anew, what is refused, and the copy of the file as it was."""

import os
import re
import sqlite3
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from textwrap import indent
from typing import NamedTuple

import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL

from tests.migrating import HEAD, try_alembic
from tests.processes import ROOT, run, spell

INI = ROOT / "alembic.ini"
EXAMPLE_INI = ROOT / "docs/rename/alembic.ini"

REVISION = '''"""A revision that a test needs."""

import sqlalchemy as sa
from alembic import op

revision = "test"
down_revision = "{head}"
branch_labels = None
depends_on = None
reversible = True


def upgrade() -> None:
{upgrade}


def downgrade() -> None:
    pass
'''
REFERENCE = "CONSTRAINT side_hero FOREIGN KEY (hero_id) REFERENCES hero (id)"
REBUILD = 'with op.batch_alter_table("{}", recreate="always"):\n    pass'

# What other hands may have hung on the table, and beside it.
COLUMNS = (
    "email VARCHAR, power VARCHAR DEFAULT 'it''s none' NOT NULL, speed FLOAT DEFAULT (1.5 * 2),"
    " luck INTEGER DEFAULT -1, born DATE DEFAULT CURRENT_DATE, team_id INTEGER, boss_id INTEGER"
)
CONSTRAINTS = (
    "CONSTRAINT hero_power_check CHECK (power <> ''), CONSTRAINT hero_email_key UNIQUE (email),"
    " UNIQUE (team_id, speed),"
    " CONSTRAINT hero_team_id_fkey FOREIGN KEY (team_id) REFERENCES team (id) ON DELETE SET NULL,"
    " FOREIGN KEY (boss_id) REFERENCES hero (id) ON DELETE CASCADE"
)
AROUND = """
    CREATE INDEX ix_hero_of_old ON hero (name) WHERE age > 60;
    CREATE UNIQUE INDEX ix_hero_name_luck ON hero (name, luck);
    CREATE UNIQUE INDEX ix_hero_only ON hero (age) WHERE power = 'to be the only one';
    CREATE TABLE team (id INTEGER PRIMARY KEY, name VARCHAR NOT NULL COLLATE NOCASE);
    CREATE TABLE deed (
        id INTEGER PRIMARY KEY AUTOINCREMENT, what VARCHAR CHECK (what <> ''),
        hero_id INTEGER NOT NULL REFERENCES hero (id) ON DELETE CASCADE
    );
    CREATE INDEX ix_deed_what ON deed (lower(what) DESC);
    CREATE TRIGGER praise AFTER INSERT ON deed BEGIN UPDATE deed SET what = new.what || '!' WHERE id = new.id; END;
    CREATE VIEW teams AS SELECT name FROM team;
"""
HEROES = [
    (1, "Deadpond", None, "a@x", "it's none", 3.0, -1, "1991-02-01", 1, None),
    (2, "Rusty-Man", 48, "b@x", "rust", 0.5, 7, "1963-03-01", 2, None),
    (7, "Spider-Boy", 17, None, "to be the only one", 3.0, 7, None, None, 1),
]
SAME_IN_ALL = ["id", "name", "age", "email", "power", "speed", "luck", "born", "team_id", "boss_id"]
DEEDS = [(1, "saves a cat", 1), (2, "saves a dog", 2), (5, "saves two", 2)]
SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
FORBIDDEN: list[dict[str, object]] = [
    {"power": ""},
    {"email": "b@x"},
    {"team_id": 2, "speed": 0.5},
    {"name": "Deadpond", "luck": -1},
    {"age": 17, "power": "to be the only one"},
    {"team_id": 3},
    {"boss_id": 3},
    {"name": None},
    {"id": 1},
]


class Rebuild(NamedTuple):
    """A way from one revision to another on which the table is made anew."""

    start: str
    end: str
    undo: bool = False


REBUILDS = {
    "0002": Rebuild("0001", "0002"),
    "0002 undone": Rebuild("0002", "0001", undo=True),
    "one that changes nothing": Rebuild(HEAD, "test"),
    "rename_4": Rebuild("rename_3", "rename_4"),
    "rename_4 undone": Rebuild("rename_4", "rename_3", undo=True),
    "rename_6": Rebuild("rename_5", "rename_6"),
    "rename_7": Rebuild("rename_6", "rename_7"),
}
EVERY_NUMBERED_REBUILD = pytest.mark.parametrize(
    "rebuild", [pytest.param(rebuild, id=name) for name, rebuild in REBUILDS.items() if "0001" not in rebuild]
)


def url_of(file: Path) -> URL:
    return URL.create("sqlite+aiosqlite", database=str(file))


@contextmanager
def opened(file: Path, *pragmas: str) -> Iterator[sqlite3.Connection]:
    """Connect as the service does, each statement committed by itself."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
        yield connection


def dump(file: Path) -> list[str]:
    """The schema and the rows, as statements."""
    with opened(file) as connection:
        return list(connection.iterdump())


def schema(file: Path) -> list[tuple[str, str, str, str]]:
    with opened(file) as connection:
        return connection.execute(SCHEMA).fetchall()


def insert_hero(connection: sqlite3.Connection, **values: object) -> int:
    """Insert a hero with all that is required at any revision, and return its number."""
    columns = {column[1] for column in connection.execute("PRAGMA table_info(hero)")}
    row = dict.fromkeys({"name", "secret_name", "alias"} & columns, "x") | values
    marks = ", ".join("?" * len(row))
    statement = f"INSERT INTO hero ({', '.join(row)}) VALUES ({marks}) RETURNING id"
    return int(connection.execute(statement, list(row.values())).fetchone()[0])


def fill(file: Path, rows: int = 2) -> None:
    with opened(file) as connection:
        connection.execute("BEGIN")
        for row in range(rows):
            insert_hero(connection, name=f"Hero {row}")
        connection.execute("COMMIT")


def revise(folder: Path, upgrade: str) -> Path:
    """Write a revision `test` after the newest, and a configuration that knows it, as the example's does."""
    (folder / "test.py").write_text(REVISION.format(head=HEAD, upgrade=indent(upgrade, "    ")))
    ini = folder / "alembic.ini"
    ini.write_text(
        "[alembic]\n"
        f"script_location = {ROOT}/migrations\n"
        f"version_locations = {ROOT}/migrations/versions{os.pathsep}{folder}\n"
        f"prepend_sys_path = {ROOT}\n"
        "path_separator = os\n"
    )
    return ini


def config_for(file: Path, ini: Path, *arguments: str) -> Config:
    return Config(ini, cmd_opts=Namespace(x=arguments), attributes={"url": url_of(file)})


def upgrade(file: Path, revision: str = "head", ini: Path = INI) -> None:
    command.upgrade(config_for(file, ini), revision)


def refusal_of(file: Path, ini: Path = INI) -> str:
    """Try to upgrade, and return why not."""
    try:
        upgrade(file, ini=ini)
    except CommandError as error:
        return str(error)
    return ""


def run_rebuild(file: Path, rebuild: Rebuild) -> None:
    """Go that way, in this process."""
    ini = revise(file.parent, REBUILD.format("hero")) if rebuild.end == "test" else EXAMPLE_INI
    if rebuild.undo:
        command.downgrade(config_for(file, ini), rebuild.end)
    else:
        upgrade(file, rebuild.end, ini)


def try_upgrade(file: Path, ini: Path = INI) -> CompletedProcess[str]:
    return try_alembic(url_of(file), "--config", str(ini), "upgrade", "head")


def backups(file: Path) -> list[Path]:
    return sorted(file.parent.glob("*.bak"))


def leftovers(file: Path) -> list[Path]:
    return sorted(file.parent.glob("*.part*"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a database can be."""
    return tmp_path / "database.db"


@pytest.fixture
def first(file: Path) -> Path:
    """A database before the first rebuild, with two heroes."""
    upgrade(file, "0001")
    fill(file)
    return file


def furnish(file: Path, rebuild: Rebuild) -> None:
    """Make a database before a rebuild, with all in it that can get lost."""
    upgrade(file, rebuild.start, EXAMPLE_INI)
    with opened(file) as connection:
        statements = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE tbl_name = 'hero'"))
        table = statements.pop("hero").replace("(", f"({COLUMNS}, ", 1).removesuffix(")")
        indexes = "; ".join(statement for statement in statements.values() if statement)
        connection.executescript(f"DROP TABLE hero; {table}, {CONSTRAINTS}); {indexes}; {AROUND}")
        connection.execute("INSERT INTO team VALUES (1, 'Preventers'), (2, 'Z-Force')")
        for hero in HEROES:
            insert_hero(connection, **dict(zip(SAME_IN_ALL, hero, strict=True)))
        connection.executemany("INSERT INTO deed VALUES (?, ?, ?)", DEEDS)


class TestWhatIsKept:
    @pytest.fixture(params=list(REBUILDS.values()), ids=list(REBUILDS))
    def before(self, request: pytest.FixtureRequest, file: Path) -> list[tuple[str, str, str, str]]:
        """The schema before a rebuild, which is done."""
        furnish(file, request.param)
        before = schema(file)
        run_rebuild(file, request.param)
        assert before != schema(file)
        return before

    @pytest.mark.usefixtures("before")
    def test_every_row_of_it_and_of_its_child(self, file: Path) -> None:
        with opened(file) as connection:
            assert connection.execute(f"SELECT {', '.join(SAME_IN_ALL)} FROM hero ORDER BY id").fetchall() == HEROES
            assert connection.execute("SELECT * FROM deed ORDER BY id").fetchall() == [
                (number, f"{what}!", hero) for number, what, hero in DEEDS
            ]

    def test_its_indexes(self, before: list[tuple[str, str, str, str]], file: Path) -> None:
        def indexes(schema: list[tuple[str, str, str, str]]) -> dict[str, str]:
            return {
                name: "".join(sql.split()) for kind, name, table, sql in schema if (kind, table) == ("index", "hero")
            }

        assert len(indexes(before)) >= 5
        assert indexes(schema(file)) == indexes(before)

    def test_everything_else_to_the_letter(self, before: list[tuple[str, str, str, str]], file: Path) -> None:
        assert [thing for thing in schema(file) if thing[2] != "hero"] == [
            thing for thing in before if thing[2] != "hero"
        ]

    @pytest.mark.usefixtures("before")
    def test_what_is_forbidden(self, file: Path) -> None:
        with opened(file, "foreign_keys = ON") as connection:
            for values in FORBIDDEN:
                with pytest.raises(sqlite3.IntegrityError):
                    insert_hero(connection, **values)
            insert_hero(connection, age=61, team_id=2, boss_id=1)

    @pytest.mark.usefixtures("before")
    def test_what_happens_to_those_who_refer_to_a_row_that_goes(self, file: Path) -> None:
        with opened(file, "foreign_keys = ON") as connection:
            connection.execute("DELETE FROM team WHERE id = 2")
            connection.execute("DELETE FROM hero WHERE id = 1")
            assert connection.execute("SELECT id, team_id FROM hero").fetchall() == [(2, None)]
            assert connection.execute("SELECT id FROM deed ORDER BY id").fetchall() == [(2,), (5,)]

    @pytest.mark.usefixtures("before")
    def test_what_a_column_is_when_nothing_is_said(self, file: Path) -> None:
        with opened(file) as connection:
            insert_hero(connection, name="New")
            assert connection.execute(
                "SELECT power, speed, luck, born = CURRENT_DATE FROM hero WHERE name = 'New'"
            ).fetchone() == ("it's none", 3.0, -1, 1)


class TestNumbers:
    @EVERY_NUMBERED_REBUILD
    @pytest.mark.parametrize("gone", ["id = 9", "TRUE"], ids=["the newest is gone", "all are gone"])
    def test_none_is_given_twice(self, file: Path, rebuild: Rebuild, gone: str) -> None:
        upgrade(file, rebuild.start, EXAMPLE_INI)
        fill(file, 9)
        with opened(file) as connection:
            connection.execute(f"DELETE FROM hero WHERE {gone}")
        run_rebuild(file, rebuild)
        with opened(file) as connection:
            assert insert_hero(connection) == 10

    @pytest.mark.parametrize("length", [4, 37, 38, 60])
    def test_a_table_with_a_long_name_goes_on_with_them(self, file: Path, length: int) -> None:
        upgrade(file)
        name = "t" * length
        with opened(file) as connection:
            connection.execute(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY AUTOINCREMENT, x INTEGER)")
            connection.execute(f"INSERT INTO {name} (x) VALUES (1), (2)")
            connection.execute(f"DELETE FROM {name} WHERE id = 2")
        upgrade(file, ini=revise(file.parent, REBUILD.format(name)))
        with opened(file) as connection:
            assert connection.execute(f"INSERT INTO {name} (x) VALUES (3) RETURNING id").fetchone() == (3,)

    def test_a_revision_may_begin_them_and_end_them(self, file: Path) -> None:
        for revision, numbered in [("0001", False), ("0002", True), ("0001", False), ("0002", True)]:
            go = command.downgrade if not numbered and file.exists() else command.upgrade
            go(config_for(file, INI), revision)
            with opened(file) as connection:
                (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'hero'").fetchone()
                assert ("AUTOINCREMENT" in sql) == numbered


@pytest.mark.slow
class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("before", "sentence"),
        [
            pytest.param(
                "ALTER TABLE hero ADD COLUMN luck INTEGER CHECK (luck > 0)",
                "A table that is made anew would lose something, so nothing was changed: Unnamed CHECK constraint",
                id="a check without a name",
            ),
            pytest.param(
                "CREATE UNIQUE INDEX ix_hero_lower_name ON hero (lower(name))",
                "A table that is made anew would lose something, so nothing was changed:"
                " Skipped unsupported reflection of expression-based index ix_hero_lower_name",
                id="an index on an expression",
            ),
            pytest.param(
                "CREATE TRIGGER watch AFTER DELETE ON hero BEGIN SELECT 1; END",
                "These triggers would get lost, so nothing was changed: watch.",
                id="a trigger",
            ),
        ],
    )
    def test_a_rebuild_that_would_lose_something(self, first: Path, before: str, sentence: str) -> None:
        with opened(first) as connection:
            connection.execute(before)
        found = dump(first)
        result = try_upgrade(first)
        assert result.returncode != 0
        assert f"FAILED: {sentence}" in result.stdout
        assert "Traceback" not in result.stdout
        assert dump(first) == found

    def test_a_revision_that_would_leave_rows_which_refer_to_nothing(self, first: Path) -> None:
        upgrade(first)
        with opened(first) as connection:
            connection.execute("CREATE TABLE deed (hero_id INTEGER REFERENCES hero (id) ON DELETE CASCADE)")
            connection.execute("INSERT INTO deed VALUES (1), (2), (1), (NULL)")
        found = dump(first)
        result = try_upgrade(first, revise(first.parent, 'op.execute("DELETE FROM hero WHERE id = 1")'))
        assert result.returncode != 0
        assert re.search(r"FAILED: 2 rows .*\bdeed\b.*\bhero\b.*nothing was changed", result.stdout)
        assert "Traceback" not in result.stdout
        assert dump(first) == found

    @pytest.mark.parametrize(
        ("table", "question"),
        [
            pytest.param("name VARCHAR COLLATE NOCASE", "SELECT count(*) FROM side WHERE name = 'X'", id="a collation"),
            pytest.param(
                "name VARCHAR); CREATE UNIQUE INDEX ix_side_name ON side (name COLLATE NOCASE",
                "INSERT INTO side (name) VALUES ('X') RETURNING name",
                id="the collation of an index",
            ),
            pytest.param(
                "name VARCHAR); CREATE INDEX ix_side_name ON side (name DESC",
                "SELECT \"desc\" FROM pragma_index_xinfo('ix_side_name')",
                id="the order of an index",
            ),
            pytest.param(
                "name VARCHAR, hero_id INTEGER DEFAULT 1 REFERENCES hero (id) ON DELETE CASCADE",
                "DELETE FROM hero WHERE id = 1 RETURNING id",
                id="what a foreign key does",
            ),
            pytest.param(
                "name VARCHAR, hero_id INTEGER DEFAULT 1 REFERENCES hero (id) DEFERRABLE INITIALLY DEFERRED",
                "DELETE FROM hero WHERE id = 1 RETURNING id",
                id="when a foreign key is looked at",
            ),
            pytest.param(
                "name VARCHAR UNIQUE ON CONFLICT REPLACE",
                "INSERT INTO side (name) VALUES ('x') RETURNING name",
                id="what a conflict does",
            ),
            pytest.param(
                "name VARCHAR, age INTEGER GENERATED ALWAYS AS (length(name)) STORED",
                "SELECT age FROM side",
                id="a generated column",
            ),
            pytest.param(
                "name TEXT, age INTEGER) STRICT; CREATE INDEX ix_side_name ON side (name",
                "INSERT INTO side (age) VALUES ('x') RETURNING age",
                id="strict types",
            ),
        ],
    )
    def test_what_alembic_does_not_see_is_kept_or_else_the_rebuild_is_refused(
        self, first: Path, table: str, question: str
    ) -> None:
        upgrade(first)
        with opened(first) as connection:
            connection.executescript(f"CREATE TABLE side (id INTEGER PRIMARY KEY, {table})")
            connection.execute("INSERT INTO side (name) VALUES ('x')")
        found, answered = dump(first), answer(first, question)
        if refusal := refusal_of(first, revise(first.parent, REBUILD.format("side"))):
            assert "othing was changed" in refusal
            assert dump(first) == found
        else:
            assert answer(first, question) == answered

    @pytest.mark.parametrize(
        ("table", "revision", "there", "gone"),
        [
            pytest.param(
                "name VARCHAR, CONSTRAINT side_check CHECK (name <> '')",
                'side.drop_constraint(op.f("side_check"), type_="check")',
                "name",
                "CHECK",
                id="a check",
            ),
            pytest.param(
                f"name VARCHAR, hero_id INTEGER, {REFERENCE} ON DELETE CASCADE",
                'side.drop_constraint("side_hero", type_="foreignkey");'
                ' side.create_foreign_key("side_hero", "hero", ["hero_id"], ["id"], ondelete="SET NULL")',
                "SET NULL",
                "CASCADE",
                id="what a foreign key does",
            ),
            pytest.param(
                f"name VARCHAR, hero_id INTEGER, {REFERENCE} ON DELETE CASCADE",
                'side.drop_constraint("side_hero", type_="foreignkey")',
                "hero_id",
                "REFERENCES",
                id="a foreign key",
            ),
            pytest.param(
                f"name VARCHAR, hero_id INTEGER, {REFERENCE} ON DELETE CASCADE",
                'side.drop_constraint("side_hero", type_="foreignkey"); side.drop_column("hero_id")',
                "name",
                "hero_id",
                id="a column that refers",
            ),
            pytest.param(
                "name VARCHAR, alias VARCHAR COLLATE NOCASE",
                'side.drop_column("alias")',
                "name",
                "NOCASE",
                id="a column that sorts",
            ),
            pytest.param(
                "name VARCHAR); CREATE INDEX ix_side_name ON side (name DESC",
                'side.drop_index("ix_side_name"); side.alter_column("name", nullable=False)',
                "NOT NULL",
                "ix_side_name",
                id="an index",
            ),
            pytest.param(
                "name VARCHAR); CREATE TRIGGER watch AFTER INSERT ON side BEGIN SELECT 1; END; SELECT (1",
                'op.execute("DROP TRIGGER watch"); side.alter_column("name", nullable=False)',
                "NOT NULL",
                "watch",
                id="a trigger",
            ),
        ],
    )
    def test_what_a_revision_takes_away_on_purpose_is_not(
        self, first: Path, table: str, revision: str, there: str, gone: str
    ) -> None:
        upgrade(first)
        with opened(first) as connection:
            connection.executescript(f"CREATE TABLE side (id INTEGER PRIMARY KEY, {table})")
            connection.execute("INSERT INTO side (name) VALUES ('x')")
        assert gone in str(schema(first))
        ini = revise(first.parent, f'with op.batch_alter_table("side", recreate="always") as side:\n    {revision}')
        upgrade(first, ini=ini)
        found = str([thing for thing in schema(first) if thing[2] == "side"])
        assert there in found
        assert gone not in found

    @pytest.mark.parametrize(
        "table",
        [
            pytest.param("name VARCHAR COLLATE BINARY", id="the collation that there is anyway"),
            pytest.param("name VARCHAR UNIQUE ON CONFLICT ABORT", id="what a conflict does anyway"),
            pytest.param(
                f"name VARCHAR, hero_id INTEGER, {REFERENCE} ON DELETE NO ACTION ON UPDATE NO ACTION",
                id="what a foreign key does anyway",
            ),
        ],
    )
    def test_nor_is_what_goes_without_saying(self, first: Path, table: str) -> None:
        upgrade(first)
        with opened(first) as connection:
            connection.executescript(f"CREATE TABLE side (id INTEGER PRIMARY KEY, {table})")
        upgrade(first, ini=revise(first.parent, REBUILD.format("side")))
        with opened(first) as connection:
            connection.execute("INSERT INTO side (name) VALUES ('x')")


def answer(file: Path, question: str) -> list[object] | str:
    """Ask a database something, and leave it as it is."""
    with opened(file, "foreign_keys = ON") as connection:
        connection.execute("BEGIN")
        try:
            return connection.execute(question).fetchall()
        except sqlite3.IntegrityError as error:
            return str(error)


@pytest.mark.slow
class TestOtherApplications:
    @pytest.mark.parametrize(
        "theirs",
        [
            pytest.param("name VARCHAR REFERENCES hero (name)", id="a column that is not unique"),
            pytest.param("name VARCHAR REFERENCES hero (nickname)", id="a column that is not there"),
            pytest.param("name VARCHAR REFERENCES nobody (name)", id="a table that is not there"),
            pytest.param("name VARCHAR, FOREIGN KEY (name, id) REFERENCES hero", id="a key of another length"),
        ],
    )
    def test_a_foreign_key_to_what_can_not_be_referred_to_does_not_stop_an_upgrade(
        self, first: Path, theirs: str
    ) -> None:
        with opened(first) as connection:
            connection.execute(f"CREATE TABLE theirs (id INTEGER PRIMARY KEY, {theirs})")
            connection.execute("INSERT INTO theirs VALUES (1, 'Hero 1')")
        upgrade(first, "rename_7", EXAMPLE_INI)
        with opened(first) as connection:
            assert connection.execute("SELECT * FROM theirs").fetchall() == [(1, "Hero 1")]

    def test_nor_do_rows_that_referred_to_nothing_before(self, first: Path) -> None:
        with opened(first) as connection:
            connection.execute("CREATE TABLE theirs (hero_id INTEGER REFERENCES hero (id))")
            connection.execute("INSERT INTO theirs VALUES (1), (77)")
        upgrade(first, "rename_7", EXAMPLE_INI)
        with opened(first) as connection:
            assert connection.execute("SELECT * FROM theirs").fetchall() == [(1,), (77,)]

    def test_nor_do_such_rows_in_a_table_that_is_made_anew(self, first: Path) -> None:
        upgrade(first)
        with opened(first) as connection:
            connection.execute("CREATE TABLE side (hero_id INTEGER REFERENCES hero (id))")
            connection.execute("INSERT INTO side VALUES (1), (2), (77)")
            connection.execute("DELETE FROM side WHERE hero_id = 1")
        upgrade(first, ini=revise(first.parent, REBUILD.format("side")))
        with opened(first) as connection:
            assert connection.execute("SELECT * FROM side").fetchall() == [(2,), (77,)]

    def test_but_one_more_of_such_rows_does(self, first: Path) -> None:
        upgrade(first)
        with opened(first) as connection:
            connection.execute("CREATE TABLE theirs (hero_id INTEGER REFERENCES hero (id))")
            connection.execute("INSERT INTO theirs VALUES (1), (77)")
        found = dump(first)
        with pytest.raises(CommandError, match=r"^1 rows .*would refer to nothing"):
            upgrade(first, ini=revise(first.parent, 'op.execute("DELETE FROM hero WHERE id = 1")'))
        assert dump(first) == found

    def test_their_triggers_stay(self, first: Path) -> None:
        with opened(first) as connection:
            connection.execute("CREATE TABLE theirs (id INTEGER PRIMARY KEY)")
            connection.execute("CREATE TRIGGER watch AFTER INSERT ON theirs BEGIN DELETE FROM theirs; END")
        upgrade(first)
        assert any(name == "watch" for _, name, _, _ in schema(first))

    @pytest.mark.parametrize(
        "theirs",
        [
            pytest.param("CREATE VIEW theirs AS SELECT name FROM hero", id="a view"),
            pytest.param(
                "CREATE TABLE visit (id INTEGER PRIMARY KEY);"
                "CREATE TRIGGER theirs AFTER INSERT ON visit BEGIN UPDATE hero SET age = age + 1; END",
                id="a trigger of another table",
            ),
        ],
    )
    def test_what_reads_the_table_is_kept_or_else_the_rebuild_is_refused(self, first: Path, theirs: str) -> None:
        with opened(first) as connection:
            connection.executescript(theirs)
        before, found = schema(first), dump(first)
        if refusal := refusal_of(first):
            assert "theirs" in refusal
            assert "Nothing was changed" in refusal
            assert dump(first) == found
        else:
            assert {thing for thing in before if thing[1] == "theirs"} <= set(schema(first))


@pytest.mark.slow
class TestBackup:
    @pytest.fixture(autouse=True)
    def impatience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever waits for others here waits in vain."""
        monkeypatch.setenv("MIGRATION_TIMEOUT", "5")

    def test_it_is_whole_and_has_the_rows_and_the_revision_of_before(self, first: Path) -> None:
        found = dump(first)
        upgrade(first)
        (backup,) = backups(first)
        assert backup.name.startswith("database.db.0001.")
        assert dump(backup) == found
        with opened(backup) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
            assert connection.execute("SELECT count(*) FROM hero").fetchone() == (2,)
        assert not leftovers(first)

    def test_it_can_be_put_back_and_upgraded_again(self, first: Path) -> None:
        upgrade(first)
        upgraded = sorted(dump(first))
        (backup,) = backups(first)
        backup.replace(first)
        upgrade(first)
        assert sorted(dump(first)) == upgraded

    def test_it_has_what_is_committed_and_not_in_the_file_yet(self, first: Path) -> None:
        with opened(first, "journal_mode = WAL", "wal_autocheckpoint = 0") as writer:
            writer.execute("INSERT INTO hero (name, secret_name) VALUES ('Written last', 'x')")
            assert b"Written last" not in first.read_bytes()
            upgrade(first)
            (backup,) = backups(first)
        with opened(backup) as connection:
            assert connection.execute("SELECT name FROM hero WHERE id = 3").fetchone() == ("Written last",)

    def test_others_read_while_it_is_made(self, first: Path) -> None:
        with opened(first, "journal_mode = WAL") as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM hero").fetchone() == (2,)
            upgrade(first)
            assert reader.execute("SELECT count(*) FROM hero").fetchone() == (2,)
        assert len(backups(first)) == 1

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o660])
    def test_who_can_read_and_write_the_file_can_do_so_with_it_and_nobody_else(self, first: Path, mode: int) -> None:
        first.chmod(mode)
        upgrade(first)
        (backup,) = backups(first)
        assert backup.stat().st_mode == first.stat().st_mode

    def test_it_is_one_for_an_upgrade_over_several_rebuilds(self, first: Path) -> None:
        upgrade(first, "rename_7", EXAMPLE_INI)
        (backup,) = backups(first)
        with opened(backup) as connection:
            assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]

    def test_it_is_one_for_each_upgrade(self, first: Path) -> None:
        for revision in ("0002", "rename_4", "rename_7"):
            upgrade(first, revision, EXAMPLE_INI)
        assert [backup.name.split(".")[2] for backup in backups(first)] == ["0001", "0002", "rename_4"]

    def test_there_is_none_of_a_file_that_was_not_there(self, file: Path) -> None:
        upgrade(file, "rename_7", EXAMPLE_INI)
        assert not backups(file)

    def test_there_is_none_of_a_file_with_nothing_in_it(self, file: Path) -> None:
        file.touch()
        with opened(file) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)")
        upgrade(file)
        assert not backups(file)

    def test_there_is_none_where_there_is_nothing_to_do(self, first: Path) -> None:
        upgrade(first)
        (backup,) = backups(first)
        backup.unlink()
        upgrade(first)
        assert not backups(first)

    def test_there_is_none_before_a_new_column_or_index(self, file: Path) -> None:
        upgrade(file)
        fill(file)
        upgrade(file, "rename_3", EXAMPLE_INI)
        assert not backups(file)

    @pytest.mark.parametrize(
        "destroying",
        ["DROP TABLE side", "drop table if exists side", "ALTER TABLE hero DROP COLUMN age", "\n\tDROP TABLE side"],
    )
    def test_there_is_one_before_what_destroys_without_a_rebuild(self, first: Path, destroying: str) -> None:
        upgrade(first)
        for backup in backups(first):
            backup.unlink()
        with opened(first) as connection:
            connection.execute("CREATE TABLE side (id INTEGER PRIMARY KEY)")
            connection.executescript("DROP INDEX ix_hero_age_id; DROP INDEX ix_hero_name_age_id")
        found = dump(first)
        upgrade(first, ini=revise(first.parent, f"op.execute({destroying!r})"))
        (backup,) = backups(first)
        assert dump(backup) == found

    def test_a_downgrade_that_destroys_has_one_too(self, first: Path) -> None:
        upgrade(first)
        for backup in backups(first):
            backup.unlink()
        found = dump(first)
        command.downgrade(config_for(first, INI, "lose-data"), "base")
        (backup,) = backups(first)
        assert backup.name.startswith(f"database.db.{HEAD}.")
        assert dump(backup) == found


# What a process may have to do without. The capability is root's, for whom a mode of a file is no obstacle.
NO_EXCEPTIONS = "import ctypes; ctypes.CDLL(None).prctl(24, 1)"
NO_SPACE = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


@pytest.mark.slow
class TestWhereNoBackupCanBe:
    @pytest.fixture
    def first(self, first: Path) -> Path:
        """A larger database before the first rebuild."""
        fill(first, 2000)
        return first

    def upgrade_without(self, what: str, file: Path) -> str:
        """Upgrade in a process that is limited somehow, which must fail, and return what it says."""
        script = f"import os, sys; {what}; os.execvp('alembic', ['alembic', *sys.argv[1:]])"
        result = run(sys.executable, "-c", script, "upgrade", "head", changes={"DATABASE_URL": spell(url_of(file))})
        assert result.returncode != 0
        assert "FAILED: " in result.stdout
        assert "Traceback" not in result.stdout
        return result.stdout

    def test_a_folder_that_can_not_be_written_stops_the_upgrade(self, first: Path) -> None:
        found = dump(first)
        with opened(first, "journal_mode = WAL") as other:  # with its files beside, only the copy's is missing
            other.execute("SELECT * FROM hero LIMIT 1").fetchall()
            first.parent.chmod(0o555)
            try:
                said = self.upgrade_without(NO_EXCEPTIONS, first)
            finally:
                first.parent.chmod(0o755)
        assert "Permission denied" in said
        assert (dump(first), backups(first), leftovers(first)) == (found, [], [])

    def test_nor_is_there_one_where_sqlite_can_not_write_either(self, first: Path) -> None:
        found = dump(first)
        first.parent.chmod(0o555)
        try:
            said = self.upgrade_without(NO_EXCEPTIONS, first)
        finally:
            first.parent.chmod(0o755)
        assert "readonly" in said
        assert (dump(first), backups(first), leftovers(first)) == (found, [], [])

    def test_a_name_that_gets_too_long_stops_it(self, first: Path) -> None:
        file = first.rename(first.with_name("x" * 230))
        found = dump(file)
        assert "File name too long" in self.upgrade_without("pass", file)
        assert (dump(file), backups(file), leftovers(file)) == (found, [], [])

    def test_a_disk_that_is_full_stops_it(self, first: Path) -> None:
        found = dump(first)
        self.upgrade_without(NO_SPACE.format(first.stat().st_size // 2), first)
        assert (dump(first), backups(first), leftovers(first)) == (found, [], [])

    def test_one_that_is_full_at_the_end_does_too(self, first: Path) -> None:
        found = dump(first)
        self.upgrade_without(NO_SPACE.format(first.stat().st_size + 10_000), first)
        assert dump(first) == found
        (backup,) = backups(first)
        assert dump(backup) == found
        assert not leftovers(first)
