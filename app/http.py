"""HTTP: what clients may expect of every path."""

import re
from collections.abc import Callable
from random import getrandbits
from typing import Any, cast

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.bodies import MAX_BYTES, JSONRoute
from app.sessions import lending

BODILESS = {"GET", "HEAD", "DELETE"}
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
        route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$").removesuffix("/") + "/?$")


def name_of_route(route: APIRoute) -> str:
    """Name an operation in the documentation as its handler is named."""
    return route.name


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
