"""The service as `make run` launches it, and connections to it that are used byte by byte."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

import httpx
import psutil
from sqlalchemy import URL

from tests.processes import PATIENCE, ROOT, environment, free_port, spell, wait_until_answering

LAUNCH = re.findall(r"^UVICORN := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class Service:
    """A service that runs: one process, or the parent of several."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def connected(self) -> int:
        """Count the connections that are open to it."""
        found = psutil.Process(self.process.pid).net_connections("tcp4")
        return sum(connection.status == psutil.CONN_ESTABLISHED for connection in found)


@contextmanager
def launched(url: URL, log: Path, *options: str, port: int | None = None, **settings: str) -> Iterator[Service]:
    """Launch the service and wait until it answers. At the end stop it, if it still runs, and all that it started.

    Args:
        url: its database.
        log: the file for what it prints.
        options: more of uvicorn's, of which the last one counts.
        port: where it listens; by default anywhere.
        settings: more of its environment.
    """
    port = port or free_port()
    command = (*LAUNCH, *options, "--port", str(port))
    changes = {"DATABASE_URL": spell(url), **settings}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(changes), start_new_session=True, stdout=output, stderr=output
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            wait_until_answering(client, process)
        yield Service(port, process, log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise


@contextmanager
def connections(port: int, number: int, source: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    """Open so many connections, and close them at the end."""
    opened: list[socket.socket] = []
    try:
        opened += (socket.create_connection(("127.0.0.1", port), PATIENCE, (source, 0)) for _ in range(number))
        yield opened
    finally:
        for connection in opened:
            connection.close()


def head(start: str, **headers: object) -> bytes:
    """Write the head of a request."""
    lines = (f"{name.replace('_', '-')}: {value}\r\n" for name, value in {"Host": "heroes", **headers}.items())
    return f"{start} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()


def get(connection: socket.socket) -> int:
    """Ask for the heroes, and return the status of the answer."""
    connection.sendall(head("GET /heroes/"))
    return answer(connection)[0]


def post(connection: socket.socket, body: bytes) -> None:
    """Send a hero in one piece."""
    connection.sendall(head("POST /heroes/", Content_Type="application/json", Content_Length=len(body)) + body)


def begin_post(connection: socket.socket, length: int) -> None:
    """Send the head of a POST, and return when its body is asked for: from then on, somebody is handling it."""
    expect = {"Content_Type": "application/json", "Content_Length": length, "Expect": "100-continue"}
    connection.sendall(head("POST /heroes/", **expect))
    assert connection.recv(len(GO_ON), socket.MSG_WAITALL) == GO_ON


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Read one answer: its status and its body."""
    with closing(HTTPResponse(connection)) as response:
        response.begin()
        return response.status, response.read()


def has_ended(connection: socket.socket) -> bool:
    """Wait until something comes, and tell whether it is the end."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
