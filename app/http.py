"""HTTP: what clients may expect of every path."""

import re
from collections.abc import AsyncIterator, Callable
from random import getrandbits
from typing import Any, cast
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.bodies import MAX_BYTES, JSONRoute
from app.sessions import lending

BODILESS = {"GET", "HEAD", "DELETE"}
# What responses say in headers, for the documentation: what it is, and an example.
HEADERS = {
    "ETag": ("The version of what is in the body, for `If-Match` and `If-None-Match`.", '"1"'),
    "Link": ("The next page, while there is one.", '</rows/?limit=100&cursor=WyJhNDRi>; rel="next"'),
    "Location": ("The path of what was added.", "/rows/1"),
    "X-Total-Count": ("How many rows the list has in all, if `count=exact` was sent.", "1000"),
}
REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")


class Route(JSONRoute):
    """A route that refuses a request on arrival, before it has cost much, if too many wait for a session already."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        door = getattr(self.endpoint, "door", None)
        if door and scope["method"] in (self.methods or ()):
            scope["app"].state.sessions.pool(door).check_queue()
        await super().handle(scope, receive, send)


class Router(APIRouter):
    """A router that reads bodies as `bodies` says, and answers each path with and without the slash at its end.

    It redirects neither: a redirect costs a round trip, and its address would be built from the Host header, which the
    client chooses.

    Its routes are added to the app's as they are, since include_router would match each request twice, and with the
    spelling alone that is written here. So what shall hold for all of them (dependencies, responses) is said to the
    router: they don't hear what is said to the app.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"route_class": Route, "generate_unique_id_function": name_of_route, **options})

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Register a path. The documentation shows it as it is written here."""
        # Where nobody reads the body, its limit would be noticed only after the work is done.
        if options.get("max_body_size") is None and not BODILESS.issuperset(options.get("methods") or ["GET"]):
            options["max_body_size"] = MAX_BYTES
        super().add_api_route(path, lending(endpoint), **options)
        route = cast(APIRoute, self.routes[-1])
        pattern = route.path_regex.pattern.removeprefix("^").removesuffix("$").removesuffix("/")
        # A path that is written out answers for itself: it is no value of another one's parameter.
        written_out = {
            re.escape(path)
            for path in (cast(APIRoute, other).path for other in self.routes[:-1])
            if re.fullmatch(pattern, path)
        }
        others = f"(?!(?:{'|'.join(sorted(written_out))})/?$)" if route.param_convertors and written_out else ""
        route.path_regex = re.compile(f"^{others}{pattern}/?$")


def name_of_route(route: APIRoute) -> str:
    """Name an operation in the documentation as its handler is named."""
    return route.name


def returns(*names: str, status: int = 200, **described: str) -> dict[int | str, dict[str, Any]]:
    """Declare that an operation answers with these headers, for its documentation."""
    headers = {
        name: {"description": HEADERS[name][0], "schema": {"type": "string"}, "example": HEADERS[name][1]}
        for name in names
    }
    return {status: {"headers": headers, **described}}


def own_path(request: Request) -> str:
    """Write a request's path as the client did, with what a proxy has taken from it; never with the Host header."""
    root, path = request.scope["root_path"], request.scope["path"]
    return quote(path if path.startswith(f"{root}/") else root + path)


def location(request: Request, number: int) -> str:
    """Write the path of what was added to a list."""
    return f"{own_path(request).rstrip('/')}/{number}"


class JSONLinesResponse(StreamingResponse):
    """A response of any length: JSON, one object to a line, compressed if the client likes that."""

    media_type = "application/jsonl"

    @classmethod
    async def begin(cls, request: Request, chunks: AsyncIterator[str]) -> Response:
        """Respond with what is still to be read.

        The first chunk is read at once: what fails there is answered with its status. What fails later cuts the
        response, so that nobody takes a part for the whole.
        """
        if request.scope["state"]["bodiless"]:
            return cls(iter([""]))  # one that is not the last, so that the headers are those of a stream
        first = await anext(chunks)

        async def all_chunks() -> AsyncIterator[str]:
            yield first
            async for chunk in chunks:
                yield chunk

        return cls(all_chunks())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, compressed in a thread: a chunk takes longer than other requests should wait."""
        await GZipMiddleware(super().__call__, compresslevel=6, thread_minimum_size=0)(scope, receive, send)


class AnswerHead:
    """Answers HEAD as GET, but without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything else through, and leave in the request's state whether the body is wanted."""
        if scope["type"] == "http":
            scope.setdefault("state", {})["bodiless"] = scope["method"] == "HEAD"
        if scope.get("method") != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, send_without_body)


class IdentifyRequest:
    """Gives each request an id, the client's own if it sent a sane one, and returns it as X-Request-ID."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the header to the response, and leave the id in the request's state."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        if not REQUEST_ID.fullmatch(request_id):
            request_id = f"{getrandbits(128):032x}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        await self.app(scope, receive, send_with_id)
