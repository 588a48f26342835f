"""How bodies are read, past what the corpus holds: the large ones, and the depth of the ordinary."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPResponse

import httpx
import psutil
import pytest
from sqlalchemy import URL

from app.bodies import MAX_BYTES, is_too_deep
from tests.processes import PATIENCE, free_port, server, spell

MEGABYTE = 1_000_000


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


class TestDepth:
    @pytest.mark.parametrize(
        "text", ["", "1", "{}", "[" * 32, nested(32), "[" + "[]," * 99 + "1]", '"' + "[" * 99 + '"']
    )
    def test_what_is_not_too_deep_passes(self, text: str) -> None:
        assert not is_too_deep(text)

    @pytest.mark.parametrize(
        "text",
        ["[" * 33, nested(33), '{"a":' * 33, "[1," + nested(32) + ",1]", r'["\"[",' + nested(32), '"[" ' + "[" * 33],
    )
    def test_one_level_more_is_refused_wherever_it_is(self, text: str) -> None:
        assert is_too_deep(text)


class TestSize:
    async def test_a_body_of_the_limit_is_read_and_one_byte_more_is_not(self, client: httpx.AsyncClient) -> None:
        hero = json.dumps({"name": "Deadpond", "secret_name": "Dive Wilson"})
        headers = {"Content-Type": "application/json"}
        for size, status in [(MAX_BYTES, 200), (MAX_BYTES + 1, 413)]:
            response = await client.post("/heroes/", content=hero.ljust(size), headers=headers)
            assert response.status_code == status

    async def test_where_no_body_is_read_its_length_does_not_matter(self, client: httpx.AsyncClient) -> None:
        await client.post("/heroes/", json={"name": "Deadpond", "secret_name": "Dive Wilson"})
        long = {"Content-Length": str(2 * MAX_BYTES)}
        assert (await client.get("/livez", headers=long)).status_code == 200
        assert (await client.get("/heroes/", headers=long)).status_code == 200
        assert (await client.delete("/heroes/1", headers=long)).status_code == 200
        assert (await client.get("/heroes/1")).status_code == 404

    @pytest.fixture
    def running(self, url: URL) -> Iterator[tuple[httpx.Client, psutil.Process]]:
        """A server, and its process."""
        port = free_port()
        command = ("uvicorn", "app.main:app", "--port", str(port))
        before = set(psutil.Process(os.getpid()).children())
        with server(*command, port=port, changes={"DATABASE_URL": spell(url)}) as client:
            (process,) = set(psutil.Process(os.getpid()).children()) - before
            yield client, process

    @pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", f"Content-Length: {100 * MEGABYTE}"])
    def test_100_megabytes_are_refused_and_not_kept(
        self, running: tuple[httpx.Client, psutil.Process], framing: str
    ) -> None:
        client, process = running
        assert client.get("/heroes/").status_code == 200
        before = process.memory_info().rss
        for _ in range(3):
            with closing(
                socket.create_connection((client.base_url.host, client.base_url.port), PATIENCE)
            ) as connection:
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
