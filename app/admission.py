"""Admission: requests are refused on arrival while too many wait for a connection."""

from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send


class AdmissionRoute(APIRoute):
    """A route that refuses a request before its body is read, while too many requests wait for a connection.

    On any other route the first statement of a session refuses it, behind the validation of the request. This is for
    `APIRouter(route_class=…)` of operations that all take a session.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request, or raise `PoolUnavailableError`."""
        sessionmaker = getattr(scope["app"].state, "sessionmaker", None)  # None if a test overrides the sessions
        if sessionmaker and scope["method"] in (self.methods or ()):
            pool = sessionmaker.reads if scope["method"] == "GET" else sessionmaker.writes
            pool.check_queue()
        await super().handle(scope, receive, send)
