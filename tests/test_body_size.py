"""A body that is too large is 413, and is not kept in memory."""

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from http.client import HTTPResponse

import httpx
import psutil
import pytest

from app.heroes.routes import MAX_BATCH_SIZE, MAX_BODY_SIZE
from tests.support.databases import Databases
from tests.support.heroes import DEADPOND, DEADPOND_JSON
from tests.support.processes import TIMEOUT, free_port, render_url, server

JSON = {"Content-Type": "application/json"}
MEGABYTE = 1_000_000
# The operations that read a body: a valid one, and its limit.
READS_A_BODY = {
    ("POST", "/heroes/"): (DEADPOND_JSON, MAX_BODY_SIZE),
    ("PATCH", "/heroes/1"): (DEADPOND_JSON, MAX_BODY_SIZE),
    ("POST", "/heroes/batch"): (b"[" + DEADPOND_JSON + b"]", MAX_BATCH_SIZE),
}


def test_the_limits_are_the_documented_ones() -> None:
    assert (MAX_BODY_SIZE, MAX_BATCH_SIZE) == (1 * MEGABYTE, 8 * MEGABYTE)


async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), MEGABYTE // 3):
        yield body[start : start + MEGABYTE // 3]


@pytest.mark.parametrize("operation", READS_A_BODY, ids=" ".join)
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
async def test_a_body_of_the_limit_is_read_and_one_of_a_byte_more_is_413(
    client: httpx.AsyncClient, operation: tuple[str, str], *, chunked: bool
) -> None:
    body, limit = READS_A_BODY[operation]
    await client.post("/heroes/", json=DEADPOND)
    for size, status in [(limit, 200), (limit + 1, 413)]:
        padded = body.ljust(size)
        response = await client.request(*operation, content=in_chunks(padded) if chunked else padded, headers=JSON)
        assert response.status_code == status


async def test_where_no_body_is_read_its_length_does_not_matter(client: httpx.AsyncClient) -> None:
    await client.post("/heroes/", json=DEADPOND)
    long = {"Content-Length": str(2 * MAX_BODY_SIZE)}
    assert (await client.get("/livez", headers=long)).status_code == 200
    assert (await client.get("/heroes/", headers=long)).status_code == 200
    assert (await client.delete("/heroes/1", headers=long)).status_code == 200
    assert (await client.get("/heroes/1")).status_code == 404


@pytest.fixture(scope="module")
def running(sqlite_databases: Databases) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    """A server, and its process."""
    port = free_port()
    command = ("uvicorn", "app.main:app", "--port", str(port))
    before = set(psutil.Process(os.getpid()).children())
    with server(*command, port=port, changes={"DATABASE_URL": render_url(sqlite_databases.migrated())}) as client:
        (process,) = set(psutil.Process(os.getpid()).children()) - before
        yield client, process


@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", f"Content-Length: {100 * MEGABYTE}"])
def test_100_megabytes_are_refused_and_not_kept(running: tuple[httpx.Client, psutil.Process], framing: str) -> None:
    client, process = running
    assert client.get("/heroes/").status_code == 200
    before = process.memory_info().rss
    for _ in range(3):
        with closing(socket.create_connection((client.base_url.host, client.base_url.port), TIMEOUT)) as connection:
            head = f"POST /heroes/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
            connection.sendall(head.encode())
            with closing(HTTPResponse(connection, method="POST")) as response:
                try:
                    for _ in range(100):
                        chunk = b" " * MEGABYTE
                        connection.sendall(
                            b"%x\r\n%s\r\n" % (len(chunk), chunk) if framing.endswith("chunked") else chunk
                        )
                except ConnectionError:
                    pass  # refused before all was sent
                response.begin()
                assert response.status == 413
    assert process.memory_info().rss - before < 20 * MEGABYTE
    assert client.get("/heroes/").json() == []
