"""JSON bodies: a bound on their values, because decoding takes time and memory for each value, not for each byte."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response

MAX_VALUES = 205_000

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class JSONRequest(Request):
    """A request that refuses a JSON body with too many values before it is decoded."""

    async def json(self) -> Any:
        """Decode the body.

        Raises:
            HTTPException: 413, it has too many values.
            ValueError: it can't be decoded.
        """
        body = await self.body()
        if len(body) > MAX_VALUES and has_more_values(body, MAX_VALUES):  # what is counted is a byte each
            raise HTTPException(413, f"The body has more than {MAX_VALUES:,} values")
        return await super().json()


def with_json_request(handle: Handler) -> Handler:
    """Let the handler of a route decode its body by a `JSONRequest`."""

    async def handle_json(request: Request) -> Response:
        return await handle(JSONRequest(request.scope, request.receive))

    return handle_json


def has_more_values(body: bytes, limit: int) -> bool:
    """Tell whether a body has more values than a limit: arrays, objects, their items, and their names."""
    if count_structure(body) <= limit:
        return False
    if b"\0" in body:  # UTF-16 or UTF-32, where a quote can be a part of another character
        return True
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    parts = unescaped.split(b'"', 2 * limit + 1)  # every other one is text
    return len(parts) > 2 * limit + 1 or count_structure(b" ".join(parts[::2])) > limit


def count_structure(text: bytes) -> int:
    """Count the characters that stand before an item, and those after a name, which takes as long as three."""
    return sum(map(text.count, b"[{,")) + 3 * text.count(b":")
