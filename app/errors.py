"""Errors: which status each exception gets, and the two shapes of an error response.

No other file turns the exceptions of the database, the pool and the schema into HTTP.
"""

import logging
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from opentelemetry import metrics
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Match

from app.access_log import name_route
from app.db_errors import Refusal, classify
from app.idempotency import KeyExpiredError, KeyReusedError
from app.logs import Repetitions, describe_error
from app.schema import SchemaUnavailableError
from app.shutdown import ShuttingDownError
from app.slots import PoolClosedError, PoolUnavailableError, QueueFullError, QueueTimeoutError

log = logging.getLogger(__name__)
refusals = Repetitions(log, limit=1)

PROBLEM_JSON = "application/problem+json"
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")

# The type and the title of each status that this service responds with. docs/errors.md explains them.
PROBLEMS = {
    400: ("malformed-body", "The body can't be decoded."),
    401: ("unauthorized", "The request has no valid token."),
    403: ("forbidden", "The token does not have the scope that the request needs."),
    404: ("not-found", "The resource does not exist."),
    405: ("method-not-allowed", "The resource does not support this method."),
    409: ("conflict", "The request conflicts with stored data."),
    412: ("precondition-failed", "The resource does not have the version that the request requires."),
    413: ("too-large", "The body is too large."),
    422: ("invalid-input", "The request is not valid."),
    500: ("unexpected", "An unexpected error."),
    503: ("unavailable", "The service is temporarily unavailable."),
}
REFUSED = {Refusal.CONFLICT: 409, Refusal.FULL: 503, Refusal.INVALID: 422, Refusal.UNAVAILABLE: 503}
FULL = "The database has no room left: its disk is full, or the sequence of ids is exhausted."
# Why a request got 503, in metrics. Everything else is the database.
REASONS: dict[type[Exception], str] = {
    KeyExpiredError: "key_expired",
    PoolClosedError: "shutting_down",
    QueueFullError: "queue_full",
    QueueTimeoutError: "queue_timeout",
    SchemaUnavailableError: "schema",
    ShuttingDownError: "shutting_down",
}
UNAVAILABLE = metrics.get_meter("app").create_counter(
    "requests.refused", unit="{request}", description="Requests that got 503, by reason."
)
MAX_ERRORS = 100  # that a 422 lists: a batch can have thousands
NOT_JSON = {"type": "json_type", "loc": ["body"], "msg": "Send JSON, with Content-Type: application/json"}


class Error(BaseModel):
    """An error in FastAPI's shape."""

    detail: str


class InvalidValue(BaseModel):
    """A value that is not valid: where it is and what it should be. The value itself is not repeated."""

    type: str
    loc: list[str | int]
    msg: str


class InvalidInput(BaseModel):
    """Values that are not valid, in FastAPI's shape."""

    detail: list[InvalidValue]


class Problem(BaseModel):
    """An error in the shape of RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[InvalidValue] = []


async def handle_http_exception(request: Request, error: StarletteHTTPException) -> Response:
    """Respond to an error that has its status. OPTIONS, which no route has, is 204 with `Allow`."""
    drop_traceback(error)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(allowed_methods(request))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    return respond(request, error.status_code, error.detail, headers)


async def handle_validation_error(request: Request, error: RequestValidationError) -> Response:
    """Respond with 422 and the first errors, without the values themselves, which FastAPI adds to each error."""
    errors = [
        NOT_JSON
        if found["loc"] == ("body",) and isinstance(error.body, bytes)
        else {"type": found["type"], "loc": list(found["loc"]), "msg": found["msg"]}
        for found in error.errors()[:MAX_ERRORS]
    ]
    drop_traceback(error)
    return respond(request, 422, errors)


async def handle_key_reused(request: Request, error: KeyReusedError) -> Response:
    """Respond with 422 to an Idempotency-Key that was sent with another body before."""
    return respond(
        request,
        422,
        [{"type": "idempotency_key_reused", "loc": ["header", "idempotency-key"], "msg": str(error)}],
    )


async def handle_unavailable(request: Request, error: Exception) -> Response:
    """Respond with 503 to what may work soon."""
    return respond_unavailable(request, error, str(error), event=str(error))


async def handle_database_error(request: Request, error: SQLAlchemyError) -> Response:
    """Respond to what the database refused. Where the service is at fault, raise the error again: it is a 500."""
    refusal = classify(error)
    if refusal is None:
        raise error
    status = REFUSED[refusal]
    detail = FULL if refusal is Refusal.FULL else PROBLEMS[status][1]
    event = f"refused by the database: {describe_error(error)}: {detail}"
    if status == 503:
        return respond_unavailable(request, error, detail, event)
    log.warning("%s: %s", name_route(request.scope), event)
    return respond(request, status, detail)


async def handle_unexpected(request: Request, _: Exception) -> Response:
    """Respond with 500 to an error that no other handler handles. The log has it."""
    return respond(request, 500, PROBLEMS[500][1])


def drop_traceback(error: Exception) -> None:
    """Break the cycle of an error and the frames that it has passed, of which one has it as a local variable.

    In that of FastAPI which decodes bodies, it would keep the body until the garbage collector comes.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None


def respond_unavailable(request: Request, error: Exception, detail: str, event: str) -> Response:
    """Create a 503, and count it. The log has the first of equal events."""
    UNAVAILABLE.add(1, {"reason": REASONS.get(type(error), "database")})
    is_logged = isinstance(error, SchemaUnavailableError | ShuttingDownError)  # where it was raised
    if refusals.should_log(event) and not is_logged:
        log.warning("%s: %s", name_route(request.scope), event)
    return respond(request, 503, detail, {"Retry-After": "1"})


def respond(request: Request, status: int, detail: Any, headers: Mapping[str, str] | None = None) -> Response:
    """Create an error response: problem+json when `Accept` contains it, else FastAPI's shape."""
    headers = {"Vary": "Accept", **(headers or {})}
    if PROBLEM_JSON not in ",".join(request.headers.getlist("accept")).lower():
        return JSONResponse({"detail": detail}, status, headers)
    if status in PROBLEMS:
        kind, title = f"urn:problem-type:{PROBLEMS[status][0]}", PROBLEMS[status][1]
    else:
        kind, title = "about:blank", HTTPStatus(status).phrase
    problem = {"type": kind, "title": title, "status": status, "detail": detail}
    if isinstance(detail, list):
        problem |= {"detail": "; ".join(found["msg"] for found in detail), "errors": detail}
    return JSONResponse(problem, status, headers, PROBLEM_JSON)


def allowed_methods(request: Request) -> list[str]:
    """List the methods that a path supports, on whichever routes they are.

    Where only the other spelling has routes, the path of the scope is that one.
    """
    found = {
        method
        for method in METHODS
        for route in request.app.routes
        if route.matches({**request.scope, "method": method})[0] is Match.FULL
    }
    return sorted(found | {"OPTIONS"} | ({"HEAD"} if "GET" in found else set()))


HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    StarletteHTTPException: handle_http_exception,
    RequestValidationError: handle_validation_error,
    SQLAlchemyError: handle_database_error,
    KeyReusedError: handle_key_reused,
    KeyExpiredError: handle_unavailable,
    PoolUnavailableError: handle_unavailable,
    SchemaUnavailableError: handle_unavailable,
    ShuttingDownError: handle_unavailable,
    Exception: handle_unexpected,
}
