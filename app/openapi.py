"""OpenAPI: what the documentation says of an operation beyond what FastAPI reads from its handler."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.errors import PROBLEM_JSON, PROBLEMS, Error, InvalidInput, Problem

REF_TEMPLATE = "#/components/schemas/{model}"
Responses = dict[int | str, dict[str, Any]]

# For each response header: what it says, and an example.
HEADERS = {
    "ETag": ("The version of the representation, for `If-Match` and `If-None-Match`.", '"1"'),
    "Link": ("The next page, while there is one.", '</rows/?limit=100&cursor=WyJhNDRi>; rel="next"'),
    "Location": ("The path of what was created.", "/rows/1"),
    "X-Total-Count": ("How many rows the list has in all, if `count=exact` was sent.", "1000"),
}


def error_responses(*statuses: int) -> Responses:
    """Declare that an operation responds with these errors."""
    # JSON first, with the model as its schema: clients that know one shape take the first.
    content = {"application/json": {}, PROBLEM_JSON: {"schema": {"$ref": REF_TEMPLATE.format(model="Problem")}}}
    return {
        status: {
            "description": PROBLEMS[status][1] if status in PROBLEMS else HTTPStatus(status).phrase,
            "model": InvalidInput if status == 422 else Error,
            "content": content | ({"text/plain": {}} if status == 413 else {}),  # FastAPI's own response
        }
        for status in statuses
    }


def response_headers(*names: str, status: int = 200, **described: str) -> Responses:
    """Declare that an operation responds with these headers."""
    headers = {
        name: {"description": HEADERS[name][0], "schema": {"type": "string"}, "example": HEADERS[name][1]}
        for name in names
    }
    return {status: {"headers": headers, **described}}


def request_headers(headers: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Declare headers that a handler reads from its request: a description and an example for each name.

    A `Header` parameter would declare them too, and costs 7 to 28 µs a request.
    """
    return {
        "parameters": [
            {
                "name": name,
                "in": "header",
                "required": False,
                "description": description,
                "schema": {"type": "string", "examples": [example]},
            }
            for name, (description, example) in headers.items()
        ]
    }


def name_operation(route: APIRoute) -> str:
    """Name an operation like its handler, as generated clients have it."""
    return route.name


def install(app: FastAPI) -> None:
    """Add the schema of problem+json to the documentation: no handler returns it, so FastAPI does not see it."""
    generate, problem = app.openapi, Problem.model_json_schema(ref_template=REF_TEMPLATE)
    problem.pop("$defs")  # they are among the components already

    def openapi() -> dict[str, Any]:
        schema = generate()
        schema["components"]["schemas"]["Problem"] = problem
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend its schema
