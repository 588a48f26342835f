"""A JSON body that would take long to decode is refused, and leaves no memory behind."""

import asyncio
import json
import time
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import URL

from app.admission import MAX_VALUES, has_more_values
from app.heroes.routes import MAX_BATCH, MAX_BATCH_SIZE, MAX_BODY_SIZE
from tests.support.databases import Databases
from tests.support.heroes import DEADPOND
from tests.support.service import running_service

JSON = {"Content-Type": "application/json"}
PATHS = [("/heroes/", MAX_BODY_SIZE), ("/heroes/batch", MAX_BATCH_SIZE)]
REFUSED = {"detail": "The body has more than 205,000 values"}
LONGEST = DEADPOND | {"name": "," * 255, "secret_name": '\\"[,{:' * 42}
SECONDS = 2  # the limits are 0.15 and 0.5 on an idle machine; bench.hostile measures them


@pytest.fixture(scope="module")
def databases(sqlite_databases: Databases) -> Databases:
    """One kind is enough: a body that is refused reaches no database."""
    return sqlite_databases


def fill(size: int, opening: str, item: str, closing: str) -> bytes:
    """Repeat an item, so that the body has almost the size."""
    count = (size - len(opening) - len(closing)) // (len(item) + 1)
    return (opening + ",".join([item] * count) + closing).encode()


@pytest.mark.parametrize(("path", "size"), PATHS)
async def test_a_body_with_too_many_values_is_413_at_once(client: httpx.AsyncClient, path: str, size: int) -> None:
    for parts in [
        ("[", "[]", "]"),
        ("[", "{}", "]"),
        ("[", "0", "]"),
        ("[", '""', "]"),
        ("[", '{"":0}', "]"),
        ("{", '"12345":0', "}"),
        ("[", "[" * 99 + "]" * 99, "]"),
        ('{"name":"x","secret_name":"x","power":[', "[[]]", "]}"),
        ('{"name":[', "[]", "]}"),
    ]:
        assert await post_at_once(client, path, fill(size, *parts)) == (413, REFUSED), parts


@pytest.mark.parametrize(("path", "size"), PATHS)
async def test_a_body_with_too_many_values_is_413_also_if_it_is_malformed(
    client: httpx.AsyncClient, path: str, size: int
) -> None:
    assert await post_at_once(client, path, fill(size, "[", "[]", "]")[:-1]) == (413, REFUSED)


async def test_a_body_with_too_many_values_is_413_also_in_utf_16(client: httpx.AsyncClient) -> None:
    quote = "\u0122"  # half of this character is the byte of a quote
    body = fill(MAX_BATCH_SIZE // 2, f'["{quote}",', "0", "]").decode().encode("utf-16-le")
    assert await post_at_once(client, "/heroes/batch", body) == (413, REFUSED)


async def post_at_once(client: httpx.AsyncClient, path: str, body: bytes) -> tuple[int, object]:
    """Post a body, assert that it takes little CPU time, and return the status and the JSON of the response."""
    started = time.process_time()
    response = await client.post(path, content=body, headers=JSON)
    assert time.process_time() - started < SECONDS
    return response.status_code, response.json()


async def test_a_body_of_text_is_decoded_whatever_the_text_contains(client: httpx.AsyncClient) -> None:
    response = await client.post("/heroes/batch", json=[LONGEST] * MAX_BATCH)
    assert [hero["name"] for hero in response.json()] == ["," * 255] * MAX_BATCH


async def test_unknown_fields_with_as_many_values_as_allowed_are_ignored(client: httpx.AsyncClient) -> None:
    response = await client.post("/heroes/", json=DEADPOND | {"power": [0] * (MAX_VALUES - 20)})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "value", [[0] * 10, [[]] * 10, {"a": 1, "b": [2, {"c": 3}]}, ["\\", '"', ",,,", "[", '\\",'], ["[" * 99], [[[[]]]]]
)
@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_only_structure_outside_of_text_is_counted(value: object, *, ensure_ascii: bool) -> None:
    def count(value: object) -> int:
        if isinstance(value, list):
            return max(len(value), 1) + sum(map(count, value))
        if isinstance(value, dict):
            return max(4 * len(value), 1) + sum(map(count, value.values()))
        return 0

    body = json.dumps(value, ensure_ascii=ensure_ascii).encode()
    assert not has_more_values(body, count(value))
    assert not count(value) or has_more_values(body, count(value) - 1)


@pytest.mark.slow
async def test_the_memory_of_a_refused_body_is_returned(sqlite_url: URL, tmp_path: Path) -> None:
    with running_service(sqlite_url, tmp_path / "log") as service:
        process = psutil.Process(service.process.pid)
        before = process.memory_info().rss
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", timeout=60) as client:
            body = fill(MAX_BATCH_SIZE, "[", "[]", "]")
            responses = await asyncio.gather(
                *(client.post("/heroes/batch", content=body, headers=JSON) for _ in range(12))
            )
        assert {response.status_code for response in responses} == {413}
        assert process.memory_info().rss - before < 100_000_000  # it was more than a gigabyte


@pytest.mark.parametrize("accept", ["*/*", "application/problem+json"])
async def test_a_422_lists_a_hundred_errors_at_most(client: httpx.AsyncClient, accept: str) -> None:
    response = await client.post("/heroes/batch", json=[{"age": "x"}] * MAX_BATCH, headers={"Accept": accept})
    errors = response.json().get("errors") or response.json()["detail"]
    assert (response.status_code, len(errors)) == (422, 100)
    assert errors[0]["loc"] == ["body", 0, "name"]
    assert len(response.content) < 20_000
