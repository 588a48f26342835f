"""HTTP: what clients may expect of every path."""

import re
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from fastapi import APIRouter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.bodies import MAX_BYTES, JSONRoute

BODILESS = {"GET", "HEAD", "DELETE"}
REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")


class Router(APIRouter):
    """A router that reads bodies as `bodies` says, and answers each path with and without the slash at its end.

    It redirects neither: a redirect costs a round trip, and its address would be built from the Host header, which the
    client chooses.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"route_class": JSONRoute, **options})

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Register the path as it is written, and its other spelling behind it, out of the documentation's sight."""
        # Where nobody reads the body, its limit would be noticed only after the work is done.
        if options.get("max_body_size") is None and not BODILESS.issuperset(options.get("methods") or ["GET"]):
            options["max_body_size"] = MAX_BYTES
        other_path = path.removesuffix("/") if path.endswith("/") else f"{path}/"
        super().add_api_route(path, endpoint, **options)
        super().add_api_route(other_path, endpoint, **options | {"include_in_schema": False})


class IdentifyRequest:
    """Gives each request an id, the client's own if it sent a sane one, and returns it as X-Request-ID."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the header to the response, and leave the id in the request's state."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not REQUEST_ID.fullmatch(request_id):
            request_id = str(uuid4())
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)
