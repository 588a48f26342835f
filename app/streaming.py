"""Streaming: responses of any length, sent while they are read."""

import re
from collections.abc import AsyncIterator

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Receive, Scope, Send

ZERO = re.compile(r"\s*q\s*=\s*0(?:\.0*)?\s*")


class JSONLinesResponse(StreamingResponse):
    """JSON Lines: one object a line, compressed if the client accepts gzip."""

    media_type = "application/jsonl"

    @classmethod
    async def start(cls, request: Request, chunks: AsyncIterator[str]) -> Response:
        """Create the response, and read its first chunk.

        An error in the first chunk becomes an error response. A later one truncates the response, so that no client
        takes a part of it for the whole. HEAD reads nothing.
        """
        if request.state.is_head:
            return cls(iter([""]))  # a chunk that is not the last, so that the headers are those of a stream
        first = await anext(chunks, "")

        async def all_chunks() -> AsyncIterator[str]:
            yield first
            async for chunk in chunks:
                yield chunk

        return cls(all_chunks())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. It is compressed in a thread: a chunk takes longer than other requests should wait."""
        # The middleware only looks for the word gzip in the header.
        coding = b"gzip" if accepts_gzip(Headers(scope=scope)) else b"identity"
        scope = {**scope, "headers": [(b"accept-encoding", coding)]}
        await GZipMiddleware(super().__call__, compresslevel=6, thread_minimum_size=0)(scope, receive, send)


def accepts_gzip(headers: Headers) -> bool:
    """Tell whether Accept-Encoding accepts gzip, by its name or by `*`, with a weight that is not 0."""
    accepted = {}
    for member in ",".join(headers.getlist("accept-encoding")).lower().split(","):
        coding, _, weight = member.partition(";")
        accepted[coding.strip()] = not ZERO.fullmatch(weight)
    return accepted.get("gzip", accepted.get("*", False))
