"""Middleware: what every request gets, whatever its route."""

import logging
import re
from collections.abc import Callable
from inspect import iscoroutinefunction
from random import getrandbits

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access_log import RequestLog, current_request, name_route
from app.logs import Repetitions, describe_origin, describe_with_traceback
from app.recent_writes import recent_write_headers
from app.telemetry import trace_request

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")
NOSNIFF = (b"x-content-type-options", b"nosniff")


class RequestMiddleware:
    """Gives each request an id, handles HEAD as GET, adds headers, and responds to what nothing else handles.

    It is one class, because each middleware costs a request some microseconds of its own.

    - The id is the client's own `X-Request-ID` if that is sane. It is returned, and is `request.state.request_id`.
    - Browsers take a response as what its `Content-Type` says, and caches ask again before they use it, unless it has a
      `Cache-Control` of its own.
    - A cookie with a backslash is removed, and the others stay: parsing it can take very long.
    - The access log has a line for each, whatever its response is.
    - HEAD runs the handler of GET and drops the body. `request.state.is_head` tells a handler that may leave work out.
    - An unhandled error is logged once (of many equal ones: the first three, and their number), and the handler that is
      registered for `Exception` responds. Starlette would call it too, but raise the error again: uvicorn then logs it
      with its whole message, which can repeat values, and closes the connection under the client's next request.

    `cors` wraps what responds, also to an unhandled error, so that a page can read that too.
    """

    def __init__(
        self, app: ASGIApp, cors: Callable[[ASGIApp], ASGIApp] | None = None, cache_control: str = "no-cache"
    ) -> None:
        self.app = cors(app) if cors else app
        self.cors = cors
        self.added = [NOSNIFF, (b"cache-control", cache_control.encode())]
        self.errors = Repetitions(log, limit=3)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. WebSockets and the lifespan pass through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = RequestLog(read_request_id(scope), scope["method"])
        token = current_request.set(request)
        is_head = request.method == "HEAD"
        state = scope.setdefault("state", {})
        state["request_id"], state["is_head"] = request.id, is_head
        if is_head:
            scope = {**scope, "method": "GET"}
        scope = sanitize(scope)
        trace_headers = trace_request(request.id)

        async def send_with_headers(message: Message) -> None:
            is_body = message["type"] == "http.response.body"
            if message["type"] == "http.response.start":
                request.status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", request.id.encode())]
                added = [NOSNIFF] if b"cache-control" in dict(headers) else self.added
                message["headers"] = [*headers, *added, *recent_write_headers(state), *trace_headers]
            elif is_head and is_body:
                message = {**message, "body": b""}
            await send(message)
            if is_body and not message.get("more_body"):
                request.is_complete = True
                request.write(scope)  # now: background tasks may follow

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception as error:
            await self.handle_error(error, request, scope, receive, send_with_headers)
            if "http.response.debug" in scope.get("extensions", ()):  # TestClient, which raises it in the test
                raise
        finally:
            if not request.is_complete:
                request.write(scope)
            current_request.reset(token)

    async def handle_error(
        self, error: Exception, request: RequestLog, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Log an unhandled error, and respond to it, unless a response has started: the server cuts that.

        The handler that is registered for `Exception` or 500 responds, in a thread if it is not async, as in Starlette.
        """
        # Not log.exception: it would write the whole message of a database error, which repeats values.
        if self.errors.should_log(f"{name_route(scope)}: unhandled {describe_origin(error)}"):
            log.error("%s: unhandled %s", name_route(scope), describe_with_traceback(error))
        if request.status is not None:
            return
        handlers = scope["app"].exception_handlers
        handler = handlers.get(500) or handlers[Exception]
        if iscoroutinefunction(handler):
            response: ASGIApp = await handler(Request(scope), error)
        else:
            response = await run_in_threadpool(handler, Request(scope), error)
        await (self.cors(response) if self.cors else response)(scope, receive, send)


def sanitize(scope: Scope) -> Scope:
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


def read_request_id(scope: Scope) -> str:
    """Read the client's X-Request-ID, or make one where it sent none, or one that is not sane."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            request_id: str = value.decode("latin-1")
            if REQUEST_ID.fullmatch(request_id):
                return request_id
    return f"{getrandbits(128):032x}"
