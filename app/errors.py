"""Errors: what the client is told when a request can't be answered, and what the log is told of it."""

import logging
import re
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.refusals import describe, status_of

log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")

# For each status that this service answers: the problem's type and its title. docs/errors.md explains them.
PROBLEMS = {
    400: ("malformed-body", "The body can't be read."),
    404: ("not-found", "There is nothing here."),
    405: ("method-not-allowed", "This method is not answered here."),
    409: ("conflict", "This conflicts with what is already stored."),
    412: ("changed-since", "It is not what the client has seen any more."),
    413: ("too-large", "The body is too large."),
    422: ("invalid-input", "What was sent is not valid."),
    500: ("unexpected", "The service failed."),
    503: ("unavailable", "The service can't answer now, but may soon."),
}
LONGEST_ACCEPT = 1000
WEIGHT = re.compile(r"q=(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
LEAST_WEIGHT = 0.001  # a weight of 0 says: not this
NO_JSON = {"type": "json_type", "loc": ["body"], "msg": "Send JSON, with Content-Type: application/json"}
REF_TEMPLATE = "#/components/schemas/{model}"
RETRY_AFTER = {"Retry-After": "1"}  # seconds


class MalformedBody(HTTPException):
    """400: the body can't be read."""

    def __init__(self, detail: str) -> None:
        super().__init__(status_code=400, detail=detail)


class Unavailable(HTTPException):
    """503: the service can't answer now, but the same request may work soon."""

    def __init__(self, detail: str | None) -> None:
        super().__init__(status_code=503, detail=detail, headers=RETRY_AFTER)


class Error(BaseModel):
    """An error as FastAPI tells it."""

    detail: str


class InvalidValue(BaseModel):
    """A value that is not valid: where it is and what it should be. The value itself is not repeated."""

    type: str
    loc: list[str | int]
    msg: str


class InvalidInput(BaseModel):
    """Values that are not valid, as FastAPI tells them."""

    detail: list[InvalidValue]


class Problem(BaseModel):
    """An error as RFC 9457 tells it."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[InvalidValue] = []


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declare that an operation answers with these errors, for its documentation."""
    # JSON first, with the model as its schema: clients that know one form take the first.
    forms = {"application/json": {}, PROBLEM_JSON: {"schema": {"$ref": REF_TEMPLATE.format(model="Problem")}}}
    return {
        status: {
            "description": PROBLEMS[status][1],
            "model": InvalidInput if status == 422 else Error,
            "content": forms | ({"text/plain": {}} if status == 413 else {}),  # FastAPI's own words for it
        }
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Let the app answer every error in the form that the client asks for."""
    app.exception_handler(StarletteHTTPException)(answer_http_error)
    app.exception_handler(RequestValidationError)(answer_invalid_input)
    app.exception_handler(SQLAlchemyError)(answer_refusal)
    app.add_middleware(CatchUnexpected)
    generate, problem = app.openapi, Problem.model_json_schema(ref_template=REF_TEMPLATE)
    problem.pop("$defs")  # they are among the components already

    def openapi() -> dict[str, Any]:
        schema = generate()
        schema["components"]["schemas"]["Problem"] = problem
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend its schema


async def answer_http_error(request: Request, error: StarletteHTTPException) -> Response:
    """Answer an error that was raised with its status."""
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(allowed_methods(request))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    return answer(request, error.status_code, error.detail, headers)


async def answer_invalid_input(request: Request, error: RequestValidationError) -> Response:
    """Answer that values are not valid, without what FastAPI adds to each: the value."""
    errors = [
        NO_JSON
        if found["loc"] == ("body",) and isinstance(error.body, bytes)
        else {"type": found["type"], "loc": list(found["loc"]), "msg": found["msg"]}
        for found in error.errors()
    ]
    return answer(request, 422, errors)


async def answer_refusal(request: Request, error: SQLAlchemyError) -> Response:
    """Answer what the database has refused. What is not the client's to know is raised again."""
    status = status_of(error)
    if status is None:
        raise error
    log.warning("%s: refused by the database: %s", name_of(request.scope), describe(error))
    return answer(request, status, PROBLEMS[status][1], RETRY_AFTER if status == 503 else {})


def answer(request: Request, status: int, detail: Any, headers: Mapping[str, str] | None = None) -> Response:
    """Answer an error in the one of its two forms that the client asks for."""
    headers = {"Vary": "Accept", **(headers or {})}
    if not wants_problem(",".join(request.headers.getlist("accept"))):
        return JSONResponse({"detail": detail}, status, headers)
    if status in PROBLEMS:
        kind, title = f"urn:problem-type:{PROBLEMS[status][0]}", PROBLEMS[status][1]
    else:
        kind, title = "about:blank", HTTPStatus(status).phrase
    problem = {"type": kind, "title": title, "status": status, "detail": detail}
    if isinstance(detail, list):
        problem |= {"detail": "; ".join(found["msg"] for found in detail), "errors": detail}
    return JSONResponse(problem, status, headers, PROBLEM_JSON)


def wants_problem(accept: str) -> bool:
    """Tell whether an Accept header names application/problem+json, and application/json with no higher weight.

    A header of more than `LONGEST_ACCEPT` characters is not read, nor are parameters other than the weight.
    """
    weights: dict[str, float] = {}
    for media_range in accept.lower().split(",") if len(accept) <= LONGEST_ACCEPT else ():
        name, *parameters = [part.strip() for part in media_range.split(";")]
        weight = next((parameter for parameter in parameters if parameter.startswith("q=")), "q=1")
        weights[name] = float(weight[2:]) if WEIGHT.fullmatch(weight) else 0.0
    json_ranges = ("application/json", "application/*", "*/*")
    json_weight = next((weights[name] for name in json_ranges if name in weights), 0.0)
    return weights.get(PROBLEM_JSON, 0.0) >= max(json_weight, LEAST_WEIGHT)


def allowed_methods(request: Request) -> list[str]:
    """List the methods that this path answers, whichever routes they are on."""
    found = {
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    }
    return sorted(found | {"OPTIONS"} | ({"HEAD"} if "GET" in found else set()))


def name_of(scope: Scope) -> str:
    """Name a request in the log, with the path as its route is written: what the client wrote may be anything."""
    path = getattr(scope.get("route"), "path", "an unknown path")
    return f"{scope['method']} {path} {scope['state']['request_id']}"


class CatchUnexpected:
    """Answers 500 to an error that nobody foresaw, and logs it once.

    Left to Starlette and uvicorn it would be answered too, but also be logged with its message, which can repeat a
    value of the request, and the connection would be closed under the client's next request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything through, and answer what is raised."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, note_start)
        except Exception as error:  # noqa: BLE001 - that is what it is for
            frames = "".join(traceback.format_tb(error.__traceback__))
            # Not log.exception: an exception's own text stays out of the log.
            log.error("%s: unexpected %s\n%s", name_of(scope), describe(error), frames)  # noqa: TRY400
            if not started:  # else it is too late: the server cuts a response that has no end, and the client sees it
                await answer(Request(scope), 500, PROBLEMS[500][1])(scope, receive, send)
