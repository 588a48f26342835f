"""Admission: requests are refused on arrival without a token, while too many wait, or where a body is too large."""

from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from app.json_bodies import Handler, with_json_request


class AdmissionRoute(APIRoute):
    """A route that refuses a request before its body is read: without a token, or while too many requests wait.

    On any other route the dependencies of the router and the first statement of a session refuse it, behind the body.
    This is for `APIRouter(route_class=…)` of operations that all take a session, and need a token where there are some.
    A body with too many values is refused too.
    """

    def get_route_handler(self) -> Handler:
        """Create the handler. FastAPI calls this for each route."""
        handle = super().get_route_handler()
        return with_json_request(handle) if self.body_field else handle

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request, or raise `HTTPException` or `PoolUnavailableError`."""
        state, is_supported = scope["app"].state, scope["method"] in (self.methods or ())
        if is_supported and (authorize := getattr(state, "authorize", None)):
            authorize(scope)
        sessionmaker = getattr(state, "sessionmaker", None)  # None if a test overrides the sessions
        if sessionmaker and is_supported:
            pool = sessionmaker.reads_of(scope) if scope["method"] == "GET" else sessionmaker.writes
            pool.check_queue()
        await super().handle(scope, receive, send)
