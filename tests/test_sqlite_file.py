"""SQLite's file, deleted or replaced under the service, and the size of its write-ahead log."""

import asyncio
import json
import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import WAL_LIMIT
from app.main import create_app
from app.settings import Settings
from app.sqlite_file import INTERVAL, open_wal
from tests.support.app_client import running
from tests.support.databases import Databases
from tests.support.heroes import DEADPOND
from tests.support.log_messages import messages_of
from tests.support.polling import wait_until, wait_until_async
from tests.support.processes import TIMEOUT
from tests.support.raw_http import connections, read_response, send_post
from tests.support.service import running_service
from tests.support.sql import execute

REFUSED = {"detail": "The database file was deleted or replaced."}


@pytest.fixture
def path(sqlite_url: URL) -> Path:
    """The file of the database."""
    return Path(str(sqlite_url.database))


@pytest.fixture
async def client(sqlite_url: URL) -> AsyncIterator[httpx.AsyncClient]:
    """A client for the app on that file, which has a hero."""
    async with running(create_app(Settings(database_url=sqlite_url))) as client:
        assert (await client.post("/heroes/", json=DEADPOND)).status_code == 200
        yield client


@pytest.fixture
def backup(sqlite_databases: Databases) -> Path:
    """Another database of the same schema, with a hero of another name."""
    url = sqlite_databases.migrated()
    execute(url, "INSERT INTO hero (name, secret_name) VALUES ('Rusty-Man', 'x')")
    return Path(str(url.database))


def read(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def delete(path: Path) -> None:
    path.unlink()


def move(path: Path, target: Path) -> None:
    path.replace(target)


def exists(path: Path) -> bool:
    return path.exists()


def size_of(path: Path) -> int:
    return path.stat().st_size


async def wait_until_refused(client: httpx.AsyncClient) -> None:
    async def is_refused() -> bool:
        return bool((await client.get("/readyz")).json() == REFUSED)

    await wait_until_async(is_refused)


async def wait_until_served(client: httpx.AsyncClient) -> None:
    async def is_served() -> bool:
        return (await client.get("/heroes/")).status_code == 200

    await wait_until_async(is_served)


async def test_every_request_is_503_after_the_file_was_deleted_and_the_log_has_one_line(
    client: httpx.AsyncClient, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    delete(path)
    await wait_until_refused(client)
    for method, target in [("POST", "/heroes/"), ("GET", "/heroes/1"), ("GET", "/heroes/export"), ("GET", "/readyz")]:
        response = await client.request(method, target, json=DEADPOND)
        assert (response.status_code, response.json(), response.headers["Retry-After"]) == (503, REFUSED, "1")
    assert (await client.get("/livez")).status_code == 200
    assert not exists(path)
    (line,) = messages_of(caplog, "app.sqlite_file")
    assert f"at {path} again: move a backup there, or run 'alembic upgrade head'" in line


async def test_a_file_that_is_deleted_while_it_is_opened_is_not_created_again(
    sqlite_url: URL, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sqlite_file.INTERVAL", 0.05)
    content = read(path)
    for moments in range(10):
        write(path, content)
        async with running(create_app(Settings(database_url=sqlite_url))) as client:
            for _ in range(moments):
                await asyncio.sleep(0)
            delete(path)
            await wait_until_refused(client)
            assert not exists(path)


async def test_a_file_is_watched_whatever_its_path_is(
    sqlite_url: URL, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.sqlite_file.INTERVAL", 0.05)
    content = read(path)
    for name in ("heroes.db", "a b%41#é?c.db"):
        file = tmp_path / name
        for spelling in (str(file), f"/{file}"):
            write(file, content)
            async with running(create_app(Settings(database_url=sqlite_url.set(database=spelling)))) as client:
                await wait_until_served(client)
                delete(file)
                await wait_until_refused(client)
    assert "can't be watched" not in caplog.text


@pytest.mark.chaos
@pytest.mark.parametrize("moved", [False, True])
async def test_a_backup_in_the_place_of_the_file_is_served(
    client: httpx.AsyncClient, path: Path, backup: Path, *, moved: bool
) -> None:
    if moved:
        move(path, path.with_suffix(".old"))
    move(backup, path)
    await wait_until_refused(client)
    await wait_until_served(client)
    assert [hero["name"] for hero in (await client.get("/heroes/")).json()] == ["Rusty-Man"]
    assert (await client.post("/heroes/", json=DEADPOND)).status_code == 200
    for file, names in [(path, ["Rusty-Man", "Deadpond"]), (path.with_suffix(".old"), ["Deadpond"])]:
        if file == path or moved:  # what was committed before is in the file that it was committed to
            with closing(sqlite3.connect(file)) as connection:
                assert [name for (name,) in connection.execute("SELECT name FROM hero ORDER BY id")] == names
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.chaos
async def test_a_backup_is_served_also_if_a_check_of_the_schema_was_the_first_to_notice(
    sqlite_url: URL, path: Path, backup: Path
) -> None:
    app = create_app(Settings(database_url=sqlite_url))
    async with running(app) as client:
        for pool in app.state.sessionmaker.pools:
            await pool.disconnect()  # so that the check has to connect
        move(backup, path)
        assert (await client.get("/readyz")).json() == REFUSED
        await wait_until_served(client)


async def test_a_backup_is_served_also_if_the_file_before_it_was_deleted_while_it_settled(
    client: httpx.AsyncClient, path: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sqlite_file.SETTLING_TIME", 0)
    content = read(backup)
    move(backup, path)
    await wait_until_refused(client)
    await asyncio.sleep(INTERVAL / 2)  # it is looked at once more, an interval after it was found
    delete(path)
    await asyncio.sleep(INTERVAL)
    write(path, content)
    await wait_until_served(client)
    assert [hero["name"] for hero in (await client.get("/heroes/")).json()] == ["Rusty-Man"]
    delete(path)
    await wait_until_refused(client)


async def test_an_unexpected_error_does_not_end_the_watch(
    client: httpx.AsyncClient,
    path: Path,
    backup: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened: list[bool] = []

    async def fail_first(connection: AsyncConnection) -> None:
        opened.append(exists(path))
        if opened.count(opened[-1]) == 1:
            raise MemoryError("out of memory")
        await open_wal(connection)

    async def is_watched_again() -> bool:
        return opened.count(True) > 1

    async def has_failed_without_the_file() -> bool:
        return False in opened

    monkeypatch.setattr("app.sqlite_file.SETTLING_TIME", 0)
    monkeypatch.setattr("app.sqlite_file.open_wal", fail_first)
    await wait_until_async(is_watched_again)
    delete(path)
    await wait_until_refused(client)
    await wait_until_async(has_failed_without_the_file)
    move(backup, path)
    await wait_until_served(client)
    (error,) = [record for record in caplog.records if record.name == "app.sqlite_file" and record.exc_info]
    assert error.getMessage() == "The database file can't be watched. MemoryError: out of memory"


async def test_a_file_that_can_not_be_opened_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.sqlite_file.INTERVAL", 0.01)
    app = create_app(Settings(database_url=URL.create("sqlite+aiosqlite", database=str(tmp_path / "heroes.db"))))
    await asyncio.to_thread(tmp_path.rmdir)
    async with running(app) as client:
        await asyncio.sleep(0.5)
        assert (await client.get("/heroes/")).status_code == 503
    assert messages_of(caplog, "app.sqlite_file") == [
        "The database file can't be watched. OperationalError: unable to open database file"
    ]


@pytest.mark.chaos
async def test_a_write_that_waits_meanwhile_is_refused(client: httpx.AsyncClient, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        first, second = (asyncio.create_task(client.post("/heroes/", json=DEADPOND)) for _ in range(2))
        await client.get("/heroes/")
        delete(path)
        await wait_until_refused(client)
        connection.execute("ROLLBACK")
    await first
    assert (await second).json() == REFUSED
    assert not exists(path)


@pytest.mark.chaos
async def test_a_backup_with_an_older_schema_is_refused_until_it_is_migrated(
    client: httpx.AsyncClient, path: Path, backup: Path
) -> None:
    with closing(sqlite3.connect(backup)) as connection:
        connection.execute("DELETE FROM alembic_version")
        connection.commit()
    move(backup, path)

    async def is_behind() -> bool:
        return "is at revision none" in (await client.get("/readyz")).text

    await wait_until_async(is_behind)
    assert (await client.get("/heroes/")).status_code == 503


@pytest.mark.chaos
def test_two_workers_serve_a_backup(sqlite_url: URL, path: Path, backup: Path, tmp_path: Path) -> None:
    with running_service(sqlite_url, tmp_path / "log", "--workers", "2") as service:

        def write() -> set[int]:
            with connections(service.port, 10) as several:
                for connection in several:
                    send_post(connection, json.dumps(DEADPOND).encode())
                return {read_response(connection)[0] for connection in several}

        wait_until(lambda: service.log.read_text().count("Application startup complete") == 2)
        assert write() == {200}
        move(backup, path)
        wait_until(lambda: service.log.read_text().count("deleted or replaced") == 2)
        assert write() == {503}
        wait_until(lambda: write() == {200})
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM hero WHERE id = 1").fetchone() == ("Rusty-Man",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_shutdown_while_it_connects_leaves_no_thread_that_outlives_the_loop(
    sqlite_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    connecting = threading.Event()
    errors: list[object] = []

    def connect_slowly(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connecting.set()
        time.sleep(0.1)
        connection: sqlite3.Connection = connect(*arguments, **options)
        return connection

    async def start_and_stop() -> None:
        app = create_app(Settings(database_url=sqlite_url))
        async with app.router.lifespan_context(app):
            await asyncio.to_thread(connecting.wait, TIMEOUT)

    monkeypatch.setattr(sqlite3, "connect", connect_slowly)
    monkeypatch.setattr(threading, "excepthook", errors.append)
    before = set(threading.enumerate())
    asyncio.run(start_and_stop())
    wait_until(lambda: set(threading.enumerate()) <= before)
    assert errors == []


@pytest.mark.chaos
class TestWriteAheadLog:
    @pytest.fixture
    def reading(self, path: Path) -> Iterator[sqlite3.Connection]:
        """A transaction that reads, and keeps what is written from being copied into the file."""
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            yield connection

    async def test_it_is_truncated_after_a_long_read(
        self, client: httpx.AsyncClient, path: Path, reading: sqlite3.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "app")
        wal = path.with_name(f"{path.name}-wal")

        async def is_truncated() -> bool:
            return size_of(wal) <= WAL_LIMIT

        async def is_logged() -> bool:
            return "The write-ahead log was truncated." in caplog.text

        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM hero").fetchone()
        with closing(sqlite3.connect(path, isolation_level=None)) as writing:
            writing.execute("CREATE TABLE large (x)")
            while size_of(wal) <= WAL_LIMIT:
                writing.execute("INSERT INTO large VALUES (zeroblob(20000000))")

        async def is_noticed() -> bool:
            return "because a long read needs it" in caplog.text

        await wait_until_async(is_noticed)
        assert (await client.post("/heroes/", json=DEADPOND)).status_code == 200
        reading.execute("COMMIT")
        await wait_until_async(is_truncated)
        await wait_until_async(is_logged)
        assert (await client.post("/heroes/", json=DEADPOND)).status_code == 200
        assert caplog.text.count("The write-ahead log has ") == 1
