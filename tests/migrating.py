"""Databases as ops meet them: made by the tutorial, half-migrated, at head; and the commands that change them."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, NullPool, inspect, text

from app.database import create_engine
from app.urls import is_sqlite
from tests.processes import ROOT, free_port, run, server, spell

# What create_all makes of the tutorial's Hero on Postgres. Its SQLite file is made by its own code.
TUTORIAL_ON_POSTGRES = [
    (
        "CREATE TABLE hero (name VARCHAR NOT NULL, age INTEGER, id SERIAL NOT NULL, secret_name VARCHAR NOT NULL,"
        " PRIMARY KEY (id))"
    ),
    "CREATE INDEX ix_hero_name ON hero (name)",
    "CREATE INDEX ix_hero_age ON hero (age)",
]
SCRIPT = ScriptDirectory.from_config(Config(ROOT / "alembic.ini"))
HEAD = str(SCRIPT.get_current_head())
ROWS: list[dict[str, Any]] = [{"name": "Deadpond", "age": None, "id": 1}, {"name": "Rusty-Man", "age": 48, "id": 2}]


def try_alembic(url: URL, *arguments: str, cwd: Path = ROOT, **settings: str) -> CompletedProcess[str]:
    """Run Alembic's command line, with settings in its environment."""
    return run("alembic", *arguments, cwd=cwd, changes={"DATABASE_URL": spell(url), **settings})


def alembic(url: URL, *arguments: str, cwd: Path = ROOT, **settings: str) -> str:
    """Run Alembic's command line, which must succeed, and return what it prints."""
    result = try_alembic(url, *arguments, cwd=cwd, **settings)
    assert result.returncode == 0, result.stdout
    return result.stdout


def on(url: URL, work: Callable[[Connection], Any]) -> Any:
    """Do something with a connection, in a transaction."""

    async def connect_and_work() -> Any:
        engine = create_engine(url, {}, poolclass=NullPool)
        async with engine.begin() as connection:
            return await connection.run_sync(work)

    return asyncio.run(connect_and_work())


def execute(url: URL, *statements: str) -> None:
    """Run statements, in a transaction."""
    on(url, lambda connection: [connection.execute(text(statement)) for statement in statements])


def describe(url: URL) -> dict[str, Any]:
    """Everything that the catalogue says about the tables, column order aside."""

    def look(connection: Connection) -> dict[str, Any]:
        inspector = inspect(connection)
        return {
            table: {
                "columns": sorted(str(sorted(column.items(), key=str)) for column in inspector.get_columns(table)),
                "key": inspector.get_pk_constraint(table),
                "indexes": sorted(str(index) for index in inspector.get_indexes(table)),
            }
            for table in inspector.get_table_names()
        }

    found: dict[str, Any] = on(url, look)
    return found


def tutorial_tables(url: URL) -> list[str]:
    """Spell the tutorial's tables for a database."""
    return [part.replace("SERIAL", "INTEGER") if is_sqlite(url) else part for part in TUTORIAL_ON_POSTGRES]


def make_tutorial(url: URL) -> None:
    """Make a database as the tutorial leaves it, with two heroes in it."""
    if is_sqlite(url):
        port = free_port()
        arguments = ("uvicorn", "bench.contenders.tutorial:app", "--port", str(port))
        with server(*arguments, port=port, changes={"DATABASE_URL": f"sqlite:///{url.database}"}) as client:
            for row in ROWS:
                response = client.post("/heroes/", json={**row, "secret_name": "Dive Wilson"})
                assert response.json() == row
    else:
        execute(
            url,
            *TUTORIAL_ON_POSTGRES,
            "INSERT INTO hero (name, age, secret_name) VALUES ('Deadpond', NULL, 'x'), ('Rusty-Man', 48, 'x')",
        )
