"""The access log: a line for each request, when its response has been sent."""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.types import Scope

log = logging.getLogger("app.access")

UNKNOWN = "an unknown path"
ADDRESS = re.compile(r"[0-9A-Fa-f.:]{2,45}")
PROBES = {"/livez", "/readyz"}  # logged at DEBUG if they succeed: there can be two in a second


@dataclass(slots=True)
class RequestLog:
    """What the log knows of a request."""

    id: str
    method: str
    started_at: float = field(default_factory=time.perf_counter)
    pool_wait: float = 0.0  # seconds that it has waited for connections to the database
    status: int | None = None  # None until the response starts
    is_complete: bool = False  # whether the response was sent to its end

    def write(self, scope: Scope) -> None:
        """Write its line. The scope is that which its route was found for."""
        route = path_of(scope)
        level = logging.DEBUG if route in PROBES and self.status and self.status < 400 else logging.INFO
        if not log.isEnabledFor(level):
            return
        client = scope["client"][0] if scope.get("client") else ""
        client = client if ADDRESS.fullmatch(client) else None  # a proxy may pass on any text as X-Forwarded-For
        fields = {
            "client": client,
            "method": self.method,
            "route": route,
            "status": self.status,
            "duration_ms": round((time.perf_counter() - self.started_at) * 1000, 2),
            "pool_wait_ms": round(self.pool_wait * 1000, 2),
        }
        if not self.is_complete:
            fields["is_complete"] = False
        log.log(
            level,
            "%s %s %s %s in %s ms, %s ms for a connection%s",
            client or "-",
            self.method,
            route or UNKNOWN,
            self.status or "no status",
            fields["duration_ms"],
            fields["pool_wait_ms"],
            "" if self.is_complete else ", incomplete",
            extra=fields,
        )


current_request: ContextVar[RequestLog | None] = ContextVar("current_request", default=None)


@contextmanager
def counted_as_pool_wait() -> Iterator[None]:
    """Count the time of a block as a wait of the current request for a connection, if there is one."""
    started_at = time.perf_counter()
    try:
        yield
    finally:
        if request := current_request.get():
            request.pool_wait += time.perf_counter() - started_at


def name_route(scope: Scope) -> str:
    """Name the method and the route of a request."""
    return f"{scope.get('method', 'WebSocket')} {path_of(scope) or UNKNOWN}"


def path_of(scope: Scope) -> str | None:
    """Return the path as its route is written, if there is a route: what the client wrote can be anything."""
    path: str | None = getattr(scope.get("route"), "path_format", None)
    return path
