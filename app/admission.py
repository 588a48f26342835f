"""Admission: requests are refused on arrival while too many wait for a connection, or where a body is too large."""

from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from app.json_bodies import Handler, with_json_request


class AdmissionRoute(APIRoute):
    """A route that refuses a request before its body is read, while too many requests wait for a connection.

    On any other route the first statement of a session refuses it, behind the validation of the request. This is for
    `APIRouter(route_class=…)` of operations that all take a session. A body with too many values is refused too.
    """

    def get_route_handler(self) -> Handler:
        """Create the handler. FastAPI calls this for each route."""
        handle = super().get_route_handler()
        return with_json_request(handle) if self.body_field else handle

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request, or raise `PoolUnavailableError`."""
        sessionmaker = getattr(scope["app"].state, "sessionmaker", None)  # None if a test overrides the sessions
        if sessionmaker and scope["method"] in (self.methods or ()):
            pool = sessionmaker.reads_of(scope) if scope["method"] == "GET" else sessionmaker.writes
            pool.check_queue()
        await super().handle(scope, receive, send)
