"""Admission: a request is refused without a token, while too many wait, or because its body has too many values."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

MAX_VALUES = 205_000  # of a JSON body: decoding takes time and memory for each value, not for each byte


class AdmissionRoute(APIRoute):
    """A route that refuses a request before its body is read: without a token, or while too many requests wait.

    On any other route the dependencies of the router and the first statement of a session refuse it, behind the body.
    This is for `APIRouter(route_class=…)` of operations that all take a session, and need a token where there are some.
    A body with too many values is refused too.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Create the handler, which decodes a body by a `JSONRequest`. FastAPI calls this for each route."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_json(request: Request) -> Response:
            return await handle(JSONRequest(request.scope, request.receive))

        return handle_json

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request, or raise `HTTPException` or `PoolUnavailableError`."""
        state, method = scope["app"].state, scope["method"]
        if method in (self.methods or ()):
            if authorize := getattr(state, "authorize", None):
                authorize(scope)
            if sessionmaker := getattr(state, "sessionmaker", None):  # None if a test overrides the sessions
                pool = sessionmaker.reads_of(scope) if method == "GET" else sessionmaker.writes
                pool.check_queue()
        await super().handle(scope, receive, send)


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
