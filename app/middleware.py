"""Middleware: what every request gets, whatever its route."""

import logging
import re
from inspect import iscoroutinefunction
from random import getrandbits

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.logs import Repetitions, describe_origin, describe_with_traceback
from app.recent_writes import recent_write_headers

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")


class RequestMiddleware:
    """Gives each request an id, handles HEAD as GET, and responds to the errors that nothing else handles.

    It is one class, because each middleware costs a request some microseconds of its own.

    - The id is the client's own `X-Request-ID` if that is sane. It is returned, and is `request.state.request_id`.
    - A cookie with a backslash is removed, and the others stay: parsing it can take very long.
    - HEAD runs the handler of GET and drops the body. `request.state.is_head` tells a handler that may leave work out.
    - An unhandled error is logged once (of many equal ones: the first, and their number), and the handler that is
      registered for `Exception` responds. Starlette would call it too, but raise the error again: uvicorn then logs it
      with its whole message, which can repeat values, and closes the connection under the client's next request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.errors = Repetitions(log, limit=3)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. WebSockets and the lifespan pass through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = read_request_id(scope)
        is_head = scope["method"] == "HEAD"
        state = scope.setdefault("state", {})
        state["request_id"], state["is_head"] = request_id, is_head
        if is_head:
            scope = {**scope, "method": "GET"}
        scope = rewrite(scope)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                message["headers"] += recent_write_headers(state)
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            # Not log.exception: it would write the whole message of a database error, which repeats values.
            if self.errors.should_log(f"{name_route(scope)}: unhandled {describe_origin(error)}"):
                log.error("%s: unhandled %s", name_request(scope), describe_with_traceback(error))  # noqa: TRY400
            if not started:  # else it is too late: the server cuts the response, and the client sees that
                response = await handle_unexpected(Request(scope), error)
                await response(scope, receive, send_with_id)
            if "http.response.debug" in scope.get("extensions", ()):  # TestClient, which raises it in the test
                raise


def rewrite(scope: Scope) -> Scope:
    """Return the scope without cookies that take long, and with a path that only its own route matches."""
    if b"cookie" in dict(scope["headers"]):
        scope = {**scope, "headers": [drop_slow_cookies(*header) for header in scope["headers"]]}
    if scope["path"].endswith("\n"):  # the pattern of a route ends in $, which matches before one newline, not two
        scope = {**scope, "path": f"{scope['path']}\n"}
    return scope


def drop_slow_cookies(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return a header without cookies that take the square of their length, before Python 3.11.10 and 3.12.6."""
    if name == b"cookie" and b"\\" in value:
        value = b";".join(cookie for cookie in value.split(b";") if b"\\" not in cookie)
    return name, value


async def handle_unexpected(request: Request, error: Exception) -> Response:
    """Call the handler that is registered for `Exception` or 500, in a thread if it is not async, as Starlette does."""
    handlers = request.app.exception_handlers
    handler = handlers.get(500) or handlers[Exception]
    if iscoroutinefunction(handler):
        response: Response = await handler(request, error)
        return response
    return await run_in_threadpool(handler, request, error)


def read_request_id(scope: Scope) -> str:
    """Read the client's X-Request-ID, or make one where it sent none, or one that is not sane."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            request_id: str = value.decode("latin-1")
            if REQUEST_ID.fullmatch(request_id):
                return request_id
    return f"{getrandbits(128):032x}"


def name_request(scope: Scope) -> str:
    """Name a request in the log, with the path as its route is written: what the client wrote can be anything."""
    return f"{name_route(scope)} {scope.get('state', {}).get('request_id', 'without an id')}"


def name_route(scope: Scope) -> str:
    """Name the method and the route of a request."""
    return f"{scope.get('method', 'WebSocket')} {getattr(scope.get('route'), 'path', 'an unknown path')}"
