"""HTTP/1.1 over bare sockets, so that a test controls each byte and each connection."""

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPResponse

from tests.support.processes import TIMEOUT

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@contextmanager
def connections(port: int, number: int, source: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    """Open this number of connections, and close them on exit."""
    opened: list[socket.socket] = []
    try:
        opened += (socket.create_connection(("127.0.0.1", port), TIMEOUT, (source, 0)) for _ in range(number))
        yield opened
    finally:
        for connection in opened:
            connection.close()


def request_head(start: str, **headers: object) -> bytes:
    """Build the head of a request from its method and target and its headers."""
    lines = (f"{name.replace('_', '-')}: {value}\r\n" for name, value in {"Host": "heroes", **headers}.items())
    return f"{start} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()


def get_heroes(connection: socket.socket) -> int:
    """Request the list of heroes, and return the status of the response."""
    connection.sendall(request_head("GET /heroes/"))
    return read_response(connection)[0]


def send_post(connection: socket.socket, body: bytes) -> None:
    """Send a whole POST to /heroes/."""
    connection.sendall(request_head("POST /heroes/", Content_Type="application/json", Content_Length=len(body)) + body)


def begin_post(connection: socket.socket, length: int) -> None:
    """Send the head of a POST to /heroes/, as `begin_request` does."""
    begin_request(connection, "POST /heroes/", length)


def begin_request(connection: socket.socket, start: str, length: int) -> None:
    """Send the head of a request and return after 100 Continue: by then the app has begun to read the body."""
    expect = {"Content_Type": "application/json", "Content_Length": length, "Expect": "100-continue"}
    connection.sendall(request_head(start, **expect))
    assert connection.recv(len(CONTINUE), socket.MSG_WAITALL) == CONTINUE


def read_response(connection: socket.socket) -> tuple[int, bytes]:
    """Read one response: its status and its body."""
    with closing(HTTPResponse(connection)) as response:
        response.begin()
        return response.status, response.read()


def wait_for_close(connection: socket.socket) -> bool:
    """Block until the server sends a byte or closes the connection, and return whether it closed it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
