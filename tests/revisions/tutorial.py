"""Databases as FastAPI's SQL tutorial creates them."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import URL

from app.urls import is_sqlite
from tests.support.processes import free_port, server
from tests.support.sql import execute

# What create_all emits for the tutorial's Hero on Postgres. On SQLite the tutorial's own code creates the file.
DDL_ON_POSTGRES = [
    (
        "CREATE TABLE hero (name VARCHAR NOT NULL, age INTEGER, id SERIAL NOT NULL, secret_name VARCHAR NOT NULL,"
        " PRIMARY KEY (id))"
    ),
    "CREATE INDEX ix_hero_name ON hero (name)",
    "CREATE INDEX ix_hero_age ON hero (age)",
]
TUTORIAL_ROWS: list[dict[str, Any]] = [
    {"name": "Deadpond", "age": None, "id": 1},
    {"name": "Rusty-Man", "age": 48, "id": 2},
]


def tutorial_ddl(url: URL) -> list[str]:
    """Return the statements that create the tutorial's tables on a database of this kind."""
    if is_sqlite(url):
        return [statement.replace("SERIAL", "INTEGER") for statement in DDL_ON_POSTGRES]
    return DDL_ON_POSTGRES


@cache
def tutorial_file() -> bytes:
    """Return the file that the tutorial's own code creates, with two heroes."""
    port = free_port()
    arguments = ("uvicorn", "bench.contenders.tutorial:app", "--port", str(port))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "database.db"
        with server(*arguments, port=port, changes={"DATABASE_URL": f"sqlite:///{file}"}) as client:
            for row in TUTORIAL_ROWS:
                response = client.post("/heroes/", json={**row, "secret_name": "Dive Wilson"})
                assert response.json() == row
        return file.read_bytes()


def create_tutorial_database(url: URL) -> None:
    """Create the tutorial's tables, with two heroes, in an empty database."""
    if is_sqlite(url):
        Path(str(url.database)).write_bytes(tutorial_file())
    else:
        execute(
            url,
            *DDL_ON_POSTGRES,
            "INSERT INTO hero (name, age, secret_name) VALUES ('Deadpond', NULL, 'x'), ('Rusty-Man', 48, 'x')",
        )
