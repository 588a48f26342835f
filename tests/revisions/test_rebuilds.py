"""Rebuilds on SQLite: what a rebuilt table keeps, which rebuilds are refused, and the backup."""

import os
import shutil
import sqlite3
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import indent
from typing import NamedTuple

import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL

from tests.support.alembic_commands import HEAD
from tests.support.processes import ROOT, render_url, run

INI = ROOT / "alembic.ini"
EXAMPLE_INI = ROOT / "docs/rename/alembic.ini"

REVISION = '''"""A revision that a test needs."""

import sqlalchemy as sa
from alembic import op

revision = "test"
down_revision = "{head}"
reversible = True


def upgrade() -> None:
{upgrade}


def downgrade() -> None:
    pass
'''
REFERENCE = "CONSTRAINT side_hero FOREIGN KEY (hero_id) REFERENCES hero (id)"
REBUILD = 'with op.batch_alter_table("{}", recreate="always"):\n    pass'

# What others may have added to the table, and beside it.
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
Schema = list[tuple[str, str, str, str]]  # a type, a name, a table and the SQL of each
HEROES = [
    (1, "Deadpond", None, "a@x", "it's none", 3.0, -1, "1991-02-01", 1, None),
    (2, "Rusty-Man", 48, "b@x", "rust", 0.5, 7, "1963-03-01", 2, None),
    (7, "Spider-Boy", 17, None, "to be the only one", 3.0, 7, None, None, 1),
]
SAME_IN_ALL = ["id", "name", "age", "email", "power", "speed", "luck", "born", "team_id", "boss_id"]
DEEDS = [(1, "saves a cat", 1), (2, "saves a dog", 2), (5, "saves two", 2)]
SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
VIOLATIONS: list[dict[str, object]] = [
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
    """A way from one revision to another that rebuilds the table."""

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
REBUILDS_WITH_AUTOINCREMENT = pytest.mark.parametrize(
    "rebuild", [pytest.param(rebuild, id=name) for name, rebuild in REBUILDS.items() if "0001" not in rebuild]
)


def url_of(file: Path) -> URL:
    return URL.create("sqlite+aiosqlite", database=str(file))


@contextmanager
def opened(file: Path, *pragmas: str) -> Iterator[sqlite3.Connection]:
    """Connect in autocommit mode, as the service does."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
        yield connection


def dump(file: Path) -> list[str]:
    """The schema and the rows, as statements."""
    with opened(file) as connection:
        return list(connection.iterdump())


def schema(file: Path) -> Schema:
    with opened(file) as connection:
        return connection.execute(SCHEMA).fetchall()


def insert_hero(connection: sqlite3.Connection, **values: object) -> int:
    """Insert a hero with the columns that its revision requires, and return its id."""
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
    """Write a revision `test` that follows head, and a configuration that includes it."""
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


@cache
def migrated(revision: str) -> bytes:
    """Return a file at a revision, without rows."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "database.db"
        upgrade(file, revision, EXAMPLE_INI)
        return file.read_bytes()


def refusal_of(file: Path, ini: Path = INI) -> str:
    """Try to upgrade, and return the refusal or an empty string."""
    try:
        upgrade(file, ini=ini)
    except CommandError as error:
        return str(error)
    return ""


def run_rebuild(file: Path, rebuild: Rebuild) -> None:
    """Run the rebuild in this process."""
    ini = revise(file.parent, REBUILD.format("hero")) if rebuild.end == "test" else EXAMPLE_INI
    if rebuild.undo:
        command.downgrade(config_for(file, ini), rebuild.end)
    else:
        upgrade(file, rebuild.end, ini)


def backups(file: Path) -> list[Path]:
    return sorted(file.parent.glob("*.bak"))


def leftovers(file: Path) -> list[Path]:
    return sorted(file.parent.glob("*.part*"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of a database that does not exist yet."""
    return tmp_path / "database.db"


@pytest.fixture
def first(file: Path) -> Path:
    """A database before the first rebuild, with two heroes."""
    file.write_bytes(migrated("0001"))
    fill(file)
    return file


def furnish(file: Path, rebuild: Rebuild) -> None:
    """Make a database before a rebuild, with everything that a rebuild can lose."""
    file.write_bytes(migrated(rebuild.start))
    with opened(file) as connection:
        statements = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE tbl_name = 'hero'"))
        table = statements.pop("hero").replace("(", f"({COLUMNS}, ", 1).removesuffix(")")
        indexes = "; ".join(statement for statement in statements.values() if statement)
        connection.executescript(f"DROP TABLE hero; {table}, {CONSTRAINTS}); {indexes}; {AROUND}")
        connection.execute("INSERT INTO team VALUES (1, 'Preventers'), (2, 'Z-Force')")
        for hero in HEROES:
            insert_hero(connection, **dict(zip(SAME_IN_ALL, hero, strict=True)))
        connection.executemany("INSERT INTO deed VALUES (?, ?, ?)", DEEDS)


@pytest.fixture(scope="module", params=list(REBUILDS.values()), ids=list(REBUILDS))
def rebuilt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Schema]:
    """Run a rebuild, and return the file and the schema that it had before."""
    file = tmp_path_factory.mktemp("rebuilt") / "database.db"
    furnish(file, request.param)
    before = schema(file)
    run_rebuild(file, request.param)
    assert before != schema(file)
    return file, before


class TestKept:
    @pytest.fixture
    def before(self, rebuilt: tuple[Path, Schema], file: Path) -> Schema:
        """Copy the rebuilt file, and return the schema that it had before."""
        shutil.copyfile(rebuilt[0], file)
        return rebuilt[1]

    @pytest.mark.usefixtures("before")
    def test_the_rows_of_the_table_and_of_its_child_are_kept(self, file: Path) -> None:
        with opened(file) as connection:
            assert connection.execute(f"SELECT {', '.join(SAME_IN_ALL)} FROM hero ORDER BY id").fetchall() == HEROES
            assert connection.execute("SELECT * FROM deed ORDER BY id").fetchall() == [
                (number, f"{what}!", hero) for number, what, hero in DEEDS
            ]

    def test_the_indexes_are_kept(self, before: Schema, file: Path) -> None:
        def indexes(schema: Schema) -> dict[str, str]:
            return {
                name: "".join(sql.split()) for kind, name, table, sql in schema if (kind, table) == ("index", "hero")
            }

        assert len(indexes(before)) >= 5
        assert indexes(schema(file)) == indexes(before)

    def test_the_schema_of_everything_else_is_unchanged(self, before: Schema, file: Path) -> None:
        assert [thing for thing in schema(file) if thing[2] != "hero"] == [
            thing for thing in before if thing[2] != "hero"
        ]

    @pytest.mark.usefixtures("before")
    def test_the_constraints_are_kept(self, file: Path) -> None:
        with opened(file, "foreign_keys = ON") as connection:
            for values in VIOLATIONS:
                with pytest.raises(sqlite3.IntegrityError):
                    insert_hero(connection, **values)
            insert_hero(connection, age=61, team_id=2, boss_id=1)

    @pytest.mark.usefixtures("before")
    def test_the_foreign_key_actions_are_kept(self, file: Path) -> None:
        with opened(file, "foreign_keys = ON") as connection:
            connection.execute("DELETE FROM team WHERE id = 2")
            connection.execute("DELETE FROM hero WHERE id = 1")
            assert connection.execute("SELECT id, team_id FROM hero").fetchall() == [(2, None)]
            assert connection.execute("SELECT id FROM deed ORDER BY id").fetchall() == [(2,), (5,)]

    @pytest.mark.usefixtures("before")
    def test_the_server_defaults_are_kept(self, file: Path) -> None:
        with opened(file) as connection:
            insert_hero(connection, name="New")
            assert connection.execute(
                "SELECT power, speed, luck, born = CURRENT_DATE FROM hero WHERE name = 'New'"
            ).fetchone() == ("it's none", 3.0, -1, 1)


class TestAutoincrement:
    @REBUILDS_WITH_AUTOINCREMENT
    @pytest.mark.parametrize("gone", ["id = 9", "TRUE"], ids=["the newest is deleted", "all are deleted"])
    def test_no_id_is_given_twice(self, file: Path, rebuild: Rebuild, gone: str) -> None:
        file.write_bytes(migrated(rebuild.start))
        fill(file, 9)
        with opened(file) as connection:
            connection.execute(f"DELETE FROM hero WHERE {gone}")
        run_rebuild(file, rebuild)
        with opened(file) as connection:
            assert insert_hero(connection) == 10

    @pytest.mark.parametrize("length", [4, 37, 38, 60])
    def test_a_table_with_a_long_name_keeps_its_sequence(self, file: Path, length: int) -> None:
        file.write_bytes(migrated(HEAD))
        name = "t" * length
        with opened(file) as connection:
            connection.execute(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY AUTOINCREMENT, x INTEGER)")
            connection.execute(f"INSERT INTO {name} (x) VALUES (1), (2)")
            connection.execute(f"DELETE FROM {name} WHERE id = 2")
        upgrade(file, ini=revise(file.parent, REBUILD.format(name)))
        with opened(file) as connection:
            assert connection.execute(f"INSERT INTO {name} (x) VALUES (3) RETURNING id").fetchone() == (3,)

    def test_a_revision_can_add_and_remove_autoincrement(self, file: Path) -> None:
        for revision, numbered in [("0001", False), ("0002", True), ("0001", False), ("0002", True)]:
            go = command.downgrade if not numbered and file.exists() else command.upgrade
            go(config_for(file, INI), revision)
            with opened(file) as connection:
                (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'hero'").fetchone()
                assert ("AUTOINCREMENT" in sql) == numbered


@pytest.mark.slow
class TestRefused:
    @pytest.mark.parametrize(
        ("before", "sentence"),
        [
            pytest.param(
                "ALTER TABLE hero ADD COLUMN luck INTEGER CHECK (luck > 0)",
                "A rebuild would lose something: Unnamed CHECK constraint",
                id="a check without a name",
            ),
            pytest.param(
                "CREATE UNIQUE INDEX ix_hero_lower_name ON hero (lower(name))",
                "A rebuild would lose something:"
                " Skipped unsupported reflection of expression-based index ix_hero_lower_name",
                id="an index on an expression",
            ),
            pytest.param(
                "CREATE TRIGGER watch AFTER DELETE ON hero BEGIN SELECT 1; END",
                "A rebuild would lose the triggers watch. Nothing was changed.",
                id="a trigger",
            ),
        ],
    )
    def test_a_rebuild_that_loses_something_is_refused(self, first: Path, before: str, sentence: str) -> None:
        with opened(first) as connection:
            connection.execute(before)
        found = dump(first)
        refusal = refusal_of(first)
        assert refusal.startswith(sentence)
        assert "Nothing was changed." in refusal
        assert dump(first) == found

    def test_a_revision_that_leaves_dangling_references_is_refused(self, first: Path) -> None:
        upgrade(first)
        with opened(first) as connection:
            connection.execute("CREATE TABLE deed (hero_id INTEGER REFERENCES hero (id) ON DELETE CASCADE)")
            connection.execute("INSERT INTO deed VALUES (1), (2), (1), (NULL)")
        found = dump(first)
        refusal = refusal_of(first, revise(first.parent, 'op.execute("DELETE FROM hero WHERE id = 1")'))
        assert refusal.startswith("2 rows of deed would refer to missing rows of hero. Nothing was changed.")
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
                id="the action of a foreign key",
            ),
            pytest.param(
                "name VARCHAR, hero_id INTEGER DEFAULT 1 REFERENCES hero (id) DEFERRABLE INITIALLY DEFERRED",
                "DELETE FROM hero WHERE id = 1 RETURNING id",
                id="a deferred foreign key",
            ),
            pytest.param(
                "name VARCHAR UNIQUE ON CONFLICT REPLACE",
                "INSERT INTO side (name) VALUES ('x') RETURNING name",
                id="a conflict clause",
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
    def test_what_reflection_does_not_report_is_kept_or_the_rebuild_is_refused(
        self, first: Path, table: str, question: str
    ) -> None:
        upgrade(first)
        with opened(first) as connection:
            connection.executescript(f"CREATE TABLE side (id INTEGER PRIMARY KEY, {table})")
            connection.execute("INSERT INTO side (name) VALUES ('x')")
        found, answered = dump(first), answer(first, question)
        if refusal := refusal_of(first, revise(first.parent, REBUILD.format("side"))):
            assert "Nothing was changed" in refusal
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
                id="the action of a foreign key",
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
                id="a column with a foreign key",
            ),
            pytest.param(
                "name VARCHAR, alias VARCHAR COLLATE NOCASE",
                'side.drop_column("alias")',
                "name",
                "NOCASE",
                id="a column with a collation",
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
    def test_what_a_revision_drops_explicitly_is_not_refused(
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
            pytest.param("name VARCHAR COLLATE BINARY", id="the default collation"),
            pytest.param("name VARCHAR UNIQUE ON CONFLICT ABORT", id="the default conflict clause"),
            pytest.param(
                f"name VARCHAR, hero_id INTEGER, {REFERENCE} ON DELETE NO ACTION ON UPDATE NO ACTION",
                id="the default action of a foreign key",
            ),
        ],
    )
    def test_a_default_that_is_stated_explicitly_is_not_refused(self, first: Path, table: str) -> None:
        upgrade(first)
        with opened(first) as connection:
            connection.executescript(f"CREATE TABLE side (id INTEGER PRIMARY KEY, {table})")
        upgrade(first, ini=revise(first.parent, REBUILD.format("side")))
        with opened(first) as connection:
            connection.execute("INSERT INTO side (name) VALUES ('x')")


def answer(file: Path, question: str) -> list[object] | str:
    """Run a statement, roll it back, and return its rows or its error."""
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
            pytest.param("name VARCHAR REFERENCES hero (nickname)", id="a missing column"),
            pytest.param("name VARCHAR REFERENCES nobody (name)", id="a missing table"),
            pytest.param("name VARCHAR, FOREIGN KEY (name, id) REFERENCES hero", id="a key of another length"),
        ],
    )
    def test_an_invalid_foreign_key_does_not_stop_an_upgrade(self, first: Path, theirs: str) -> None:
        with opened(first) as connection:
            connection.execute(f"CREATE TABLE theirs (id INTEGER PRIMARY KEY, {theirs})")
            connection.execute("INSERT INTO theirs VALUES (1, 'Hero 1')")
        upgrade(first, "rename_7", EXAMPLE_INI)
        with opened(first) as connection:
            assert connection.execute("SELECT * FROM theirs").fetchall() == [(1, "Hero 1")]

    def test_existing_dangling_references_do_not_stop_an_upgrade(self, first: Path) -> None:
        with opened(first) as connection:
            connection.execute("CREATE TABLE theirs (hero_id INTEGER REFERENCES hero (id))")
            connection.execute("INSERT INTO theirs VALUES (1), (77)")
        upgrade(first, "rename_7", EXAMPLE_INI)
        with opened(first) as connection:
            assert connection.execute("SELECT * FROM theirs").fetchall() == [(1,), (77,)]

    def test_existing_dangling_references_do_not_stop_a_rebuild_of_their_table(self, first: Path) -> None:
        upgrade(first)
        with opened(first) as connection:
            connection.execute("CREATE TABLE side (hero_id INTEGER REFERENCES hero (id))")
            connection.execute("INSERT INTO side VALUES (1), (2), (77)")
            connection.execute("DELETE FROM side WHERE hero_id = 1")
        upgrade(first, ini=revise(first.parent, REBUILD.format("side")))
        with opened(first) as connection:
            assert connection.execute("SELECT * FROM side").fetchall() == [(2,), (77,)]

    def test_an_additional_dangling_reference_stops_an_upgrade(self, first: Path) -> None:
        upgrade(first)
        with opened(first) as connection:
            connection.execute("CREATE TABLE theirs (hero_id INTEGER REFERENCES hero (id))")
            connection.execute("INSERT INTO theirs VALUES (1), (77)")
        found = dump(first)
        with pytest.raises(CommandError, match=r"^1 rows of theirs would refer to missing rows of hero\."):
            upgrade(first, ini=revise(first.parent, 'op.execute("DELETE FROM hero WHERE id = 1")'))
        assert dump(first) == found

    def test_a_table_that_is_renamed_after_a_rebuild_keeps_its_references(self, first: Path) -> None:
        upgrade(first)
        with opened(first) as connection:
            connection.execute("CREATE TABLE team (id INTEGER PRIMARY KEY)")
            connection.execute("CREATE TABLE theirs (team_id INTEGER REFERENCES team (id))")
        rename = 'op.rename_table("team", "squad")'
        upgrade(first, ini=revise(first.parent, f"{REBUILD.format('hero')}\n{rename}"))
        (sql,) = (sql for _, name, _, sql in schema(first) if name == "theirs")
        assert "squad" in sql

    def test_triggers_of_other_tables_are_kept(self, first: Path) -> None:
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
    def test_views_and_triggers_that_use_a_rebuilt_table_are_kept(self, first: Path, theirs: str) -> None:
        with opened(first) as connection:
            connection.executescript(theirs)
        before = schema(first)
        upgrade(first)
        assert {thing for thing in before if thing[1] == "theirs"} <= set(schema(first))


@pytest.mark.slow
class TestBackup:
    @pytest.fixture(autouse=True)
    def short_timeout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fail soon when an upgrade waits for a lock that is never released."""
        monkeypatch.setenv("MIGRATION_TIMEOUT", "5")

    def test_a_backup_is_complete_and_has_the_previous_rows_and_revision(self, first: Path) -> None:
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

    def test_an_upgrade_that_fails_leaves_no_backup(self, first: Path) -> None:
        with opened(first) as connection:
            connection.execute("INSERT INTO hero (name, secret_name) VALUES (hex(zeroblob(1500)), 'x')")
        found = dump(first)
        for _ in range(2):
            with pytest.raises(CommandError, match="Rows of hero can't be served"):
                upgrade(first)
        assert (backups(first), leftovers(first)) == ([], [])
        assert dump(first) == found

    def test_a_backup_that_fails_is_reported_also_if_what_follows_fails_too(
        self, first: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise CommandError("The database could not be backed up.")

        upgrade(first)
        drop = "op.execute('DROP TABLE hero')"
        monkeypatch.setattr("migrations.rebuilds.back_up", refuse)
        with pytest.raises(CommandError, match="could not be backed up"):
            upgrade(first, ini=revise(first.parent, f"try:\n    {drop}\nfinally:\n    op.execute('fail')"))

    def test_a_restored_backup_can_be_upgraded(self, first: Path) -> None:
        upgrade(first)
        upgraded = sorted(dump(first))
        (backup,) = backups(first)
        backup.replace(first)
        upgrade(first)
        assert sorted(dump(first)) == upgraded

    def test_a_backup_includes_the_write_ahead_log(self, first: Path) -> None:
        with opened(first, "journal_mode = WAL", "wal_autocheckpoint = 0") as writer:
            writer.execute("INSERT INTO hero (name, secret_name) VALUES ('Written last', 'x')")
            assert b"Written last" not in first.read_bytes()
            upgrade(first)
            (backup,) = backups(first)
        with opened(backup) as connection:
            assert connection.execute("SELECT name FROM hero WHERE id = 3").fetchone() == ("Written last",)

    def test_a_reader_does_not_block_the_backup(self, first: Path) -> None:
        with opened(first, "journal_mode = WAL") as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM hero").fetchone() == (2,)
            upgrade(first)
            assert reader.execute("SELECT count(*) FROM hero").fetchone() == (2,)
        assert len(backups(first)) == 1

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o660])
    def test_a_backup_has_the_permissions_of_the_file(self, first: Path, mode: int) -> None:
        first.chmod(mode)
        upgrade(first)
        (backup,) = backups(first)
        assert backup.stat().st_mode == first.stat().st_mode

    def test_an_upgrade_with_several_rebuilds_makes_one_backup(self, first: Path) -> None:
        upgrade(first, "rename_7", EXAMPLE_INI)
        (backup,) = backups(first)
        with opened(backup) as connection:
            assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]

    def test_each_upgrade_makes_a_backup(self, first: Path) -> None:
        for revision in ("0002", "rename_4", "rename_7"):
            upgrade(first, revision, EXAMPLE_INI)
        assert [backup.name.split(".")[2] for backup in backups(first)] == ["0001", "0002", "rename_4"]

    def test_a_new_file_is_not_backed_up(self, file: Path) -> None:
        upgrade(file, "rename_7", EXAMPLE_INI)
        assert not backups(file)

    def test_an_empty_file_is_not_backed_up(self, file: Path) -> None:
        file.touch()
        with opened(file) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)")
        upgrade(file)
        assert not backups(file)

    def test_an_upgrade_with_nothing_to_do_makes_no_backup(self, first: Path) -> None:
        upgrade(first)
        (backup,) = backups(first)
        backup.unlink()
        upgrade(first)
        assert not backups(first)

    def test_a_new_column_or_index_makes_no_backup(self, file: Path) -> None:
        file.write_bytes(migrated(HEAD))
        fill(file)
        upgrade(file, "rename_3", EXAMPLE_INI)
        assert not backups(file)

    @pytest.mark.parametrize(
        "destroying",
        ["DROP TABLE side", "drop table if exists side", "ALTER TABLE hero DROP COLUMN age", "\n\tDROP TABLE side"],
    )
    def test_a_drop_without_a_rebuild_makes_a_backup(self, first: Path, destroying: str) -> None:
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

    def test_a_destructive_downgrade_makes_a_backup(self, first: Path) -> None:
        upgrade(first)
        for backup in backups(first):
            backup.unlink()
        found = dump(first)
        command.downgrade(config_for(first, INI, "lose-data"), "base")
        (backup,) = backups(first)
        assert backup.name.startswith(f"database.db.{HEAD}.")
        assert dump(backup) == found


# Limits of a process. The first drops the capability by which root ignores file modes.
NO_EXCEPTIONS = "import ctypes; ctypes.CDLL(None).prctl(24, 1)"
NO_SPACE = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


@pytest.mark.slow
class TestFailedBackup:
    @pytest.fixture
    def first(self, first: Path) -> Path:
        """A larger database before the first rebuild."""
        fill(first, 2000)
        return first

    def failed_upgrade(self, limit: str, file: Path) -> str:
        """Upgrade in a limited process, which must fail, and return its output."""
        script = f"import os, sys; {limit}; os.execvp('alembic', ['alembic', *sys.argv[1:]])"
        result = run(
            sys.executable, "-c", script, "upgrade", "head", changes={"DATABASE_URL": render_url(url_of(file))}
        )
        assert result.returncode != 0
        assert "FAILED: " in result.stdout
        assert "Traceback" not in result.stdout
        return result.stdout

    def test_a_read_only_folder_stops_the_upgrade(self, first: Path) -> None:
        found = dump(first)
        with opened(first, "journal_mode = WAL") as other:  # SQLite's own files exist, so that only the backup fails
            other.execute("SELECT * FROM hero LIMIT 1").fetchall()
            first.parent.chmod(0o555)
            try:
                said = self.failed_upgrade(NO_EXCEPTIONS, first)
            finally:
                first.parent.chmod(0o755)
        assert "Permission denied" in said
        assert (dump(first), backups(first), leftovers(first)) == (found, [], [])

    def test_a_read_only_folder_without_wal_files_stops_the_upgrade(self, first: Path) -> None:
        found = dump(first)
        first.parent.chmod(0o555)
        try:
            said = self.failed_upgrade(NO_EXCEPTIONS, first)
        finally:
            first.parent.chmod(0o755)
        assert "readonly" in said
        assert (dump(first), backups(first), leftovers(first)) == (found, [], [])

    def test_a_backup_name_that_is_too_long_stops_the_upgrade(self, first: Path) -> None:
        file = first.rename(first.with_name("x" * 230))
        found = dump(file)
        assert "File name too long" in self.failed_upgrade("pass", file)
        assert (dump(file), backups(file), leftovers(file)) == (found, [], [])

    def test_a_full_disk_during_the_backup_stops_the_upgrade(self, first: Path) -> None:
        found = dump(first)
        self.failed_upgrade(NO_SPACE.format(first.stat().st_size // 2), first)
        assert (dump(first), backups(first), leftovers(first)) == (found, [], [])

    def test_a_full_disk_after_the_backup_leaves_nothing_either(self, first: Path) -> None:
        found = dump(first)
        self.failed_upgrade(NO_SPACE.format(first.stat().st_size + 10_000), first)
        assert (dump(first), backups(first), leftovers(first)) == (found, [], [])
