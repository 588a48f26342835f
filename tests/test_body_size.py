"""A body that is too large is 413, and is not kept in memory."""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import httpx
import psutil
import pytest
from sqlalchemy import URL

from app.heroes.routes import MAX_BATCH_SIZE, MAX_BODY_SIZE
from tests.support.databases import Databases
from tests.support.heroes import DEADPOND, DEADPOND_JSON
from tests.support.raw_http import connections, get_heroes, read_response, request_head
from tests.support.service import Service, running_service

JSON = {"Content-Type": "application/json"}
MEGABYTE = 1_000_000
# The operations that read a body: a valid one, and its limit.
READS_A_BODY = {
    ("POST", "/heroes/"): (DEADPOND_JSON, MAX_BODY_SIZE),
    ("PATCH", "/heroes/1"): (DEADPOND_JSON, MAX_BODY_SIZE),
    ("POST", "/heroes/batch"): (b"[" + DEADPOND_JSON + b"]", MAX_BATCH_SIZE),
}


@pytest.fixture
def url(sqlite_url: URL) -> URL:
    """A database of one kind: nothing here depends on it."""
    return sqlite_url


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
def service(sqlite_databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A process of its own, so that its memory can be measured."""
    with running_service(sqlite_databases.migrated(), tmp_path_factory.mktemp("service") / "log") as service:
        yield service


@pytest.mark.parametrize("framing", [{"Transfer_Encoding": "chunked"}, {"Content_Length": 100 * MEGABYTE}], ids=str)
def test_100_megabytes_are_refused_and_not_kept(service: Service, framing: dict[str, object]) -> None:
    memory = psutil.Process(service.process.pid).memory_info
    part = b" " * MEGABYTE
    if "Transfer_Encoding" in framing:
        part = b"%x\r\n%s\r\n" % (len(part), part)
    with connections(service.port, 4) as (ordinary, *huge):
        assert get_heroes(ordinary) == 200
        before = memory().rss
        for connection in huge:
            connection.sendall(request_head("POST /heroes/", Content_Type="application/json", **framing))
            with suppress(ConnectionError):  # it is refused before all is sent
                for _ in range(100):
                    connection.sendall(part)
            assert read_response(connection)[0] == 413
        assert memory().rss - before < 20 * MEGABYTE
        ordinary.sendall(request_head("GET /heroes/"))
        assert read_response(ordinary) == (200, b"[]")
