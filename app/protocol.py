"""The HTTP protocol: uvicorn's own on httptools, for clients that are not trusted.

uvicorn takes it as `--http app.protocol:StrictHTTPProtocol`. It is for what the app can't do: a middleware sees a
request when its head is parsed. `--http h11` refuses most of this by itself, but takes 120 µs more for a request, which
is five times the CPU; this takes 3 to 5 µs.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD = 32 * 1024  # bytes of a request line and its headers, as in docs/nginx.conf
PIECE = 16 * 1024  # bytes that are parsed at a time: up to as many more may pass


class StrictHTTPProtocol(HttpToolsProtocol):
    """Accepts less than uvicorn's protocol, and never takes the body of a request for another request.

    - A head of more than `MAX_HEAD` bytes is 400, before it is complete; so are trailers.
    - HTTP/1.1 needs one Host.
    - An Upgrade is ignored, and the connection closed after the response. If the request has a body, it is 400: the
      parser skips the body, since what follows an Upgrade belongs to the other protocol.
    - Trailers are dropped. uvicorn adds them to the headers of a request that runs already.
    - HTTP/1.0 gets no chunks.
    """

    unparsed = 0  # bytes since the last that completed a head or belonged to a body

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, in pieces: the parser would first read all of a head, and then say how long it is."""
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            self.unparsed += len(piece)
            super().data_received(piece)
            if self.transport.is_closing():
                return
            if self.unparsed > MAX_HEAD:
                self.send_400_response("The head of the request is too large.")
                return

    def on_headers_complete(self) -> None:
        """Start the request, unless its head is refused."""
        self.unparsed = 0
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts != 1 and (hosts or self.parser.get_http_version() != "1.0"):
            raise HttpParserError("A request has one Host.")
        if self.parser.should_upgrade():
            self.ignore_upgrade()
        else:
            super().on_headers_complete()
            self.headers = []  # for trailers; the request keeps its own
        if self.scope["http_version"] == "1.0" and self.cycle is not None:  # as in ignore_upgrade
            self.cycle.send = without_chunks(self.cycle)  # type: ignore[assignment,method-assign]  # its only hook

    def ignore_upgrade(self) -> None:
        """Start a request with an Upgrade, and close the connection after its response."""
        if has_body(self.headers):
            raise HttpParserError("The body would be lost.")
        super().on_headers_complete()
        if self.cycle is not None:  # else uvicorn opens a WebSocket, where it is told to offer them
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self.unparsed = 0
        super().on_body(body)


def has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    """Tell whether a request has a body."""
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)


def without_chunks(cycle: RequestResponseCycle) -> Callable[[Any], Coroutine[Any, Any, None]]:
    """Return what sends a response to HTTP/1.0: if its length is not known, it ends with the connection."""
    send, has_length = cycle.send, True

    async def send_without_chunks(message: Any) -> None:
        nonlocal has_length
        if message["type"] == "http.response.start":
            has_length = any(name.lower() == b"content-length" for name, _ in message["headers"])
            cycle.chunked_encoding = None if has_length else False
        elif not has_length:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    return send_without_chunks
