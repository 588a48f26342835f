"""The two forms of an error response, the methods in `Allow`, and the documentation of both."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException

from app.errors import METHODS, PROBLEMS
from tests.support.app_client import running
from tests.support.heroes import DEADPOND
from tests.support.processes import ROOT

SECRET = DEADPOND["secret_name"]
PROBLEM = "application/problem+json"
DOCUMENTED = (ROOT / "docs/errors.md").read_text()


class TestForms:
    @pytest.mark.parametrize(
        ("request_line", "body", "status", "detail"),
        [
            ("POST /heroes/", "\xff", 400, "There was an error parsing the body"),
            ("POST /heroes/", "{", 422, "JSON decode error"),
            ("GET /heroes/1", "", 404, "Hero not found"),
            ("GET /nowhere/", "", 404, "Not Found"),
            ("PUT /heroes/1", "", 405, "Method Not Allowed"),
            ("POST /heroes/", '{"name":""}', 422, "String should have at least 1 character; Field required"),
        ],
    )
    async def test_an_error_has_the_same_members_in_both_forms(
        self, client: httpx.AsyncClient, request_line: str, body: str, status: int, detail: str
    ) -> None:
        method, path = request_line.split()
        headers = {"Content-Type": "application/json"}
        plain = await client.request(method, path, content=body.encode("latin-1"), headers=headers)
        problem = await client.request(
            method, path, content=body.encode("latin-1"), headers=headers | {"Accept": PROBLEM}
        )
        assert plain.status_code == problem.status_code == status
        assert plain.headers["Vary"] == problem.headers["Vary"] == "Accept"
        assert plain.headers["Content-Type"] == "application/json"
        assert problem.headers["Content-Type"] == PROBLEM
        kind, title = PROBLEMS[status]
        members: dict[str, Any] = {"type": f"urn:problem-type:{kind}", "title": title, "status": status}
        if status == 422:
            members |= {"errors": plain.json()["detail"]}
        else:
            assert plain.json() == {"detail": detail}
        assert problem.json() == members | {"detail": detail}

    async def test_an_invalid_value_is_not_repeated(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/heroes/", json={"name": [SECRET], "secret_name": 5, "age": SECRET})
        for error in response.json()["detail"]:
            assert error.keys() == {"type", "loc", "msg"}
        assert SECRET not in response.text

    async def test_it_is_problem_json_when_accept_names_that(self, client: httpx.AsyncClient) -> None:
        for accept in (
            "application/problem+json",
            "APPLICATION/PROBLEM+JSON",
            "application/problem+json; charset=utf-8",
            "application/json, application/problem+json",
            "text/html, application/problem+json;q=0.1",
            "application/json, application/problem+json;q=0.9",
            "text/html, " * 99 + PROBLEM,
        ):
            response = await client.get("/heroes/1", headers={"Accept": accept})
            assert (response.status_code, response.headers["Content-Type"]) == (404, PROBLEM), accept

    async def test_it_is_json_otherwise(self, client: httpx.AsyncClient) -> None:
        others = ("*/*", "application/*", "application/json", "application/problem+xml", "text/html", "", ";;q=,,")
        for accept in others:
            response = await client.get("/heroes/1", headers={"Accept": accept})
            assert (response.status_code, response.headers["Content-Type"]) == (404, "application/json"), accept

    async def test_accept_can_be_several_headers(self, client: httpx.AsyncClient) -> None:
        headers = [("Accept", "application/json"), ("Accept", PROBLEM)]
        assert (await client.get("/heroes/1", headers=headers)).headers["Content-Type"] == PROBLEM

    @pytest.mark.parametrize("status", PROBLEMS)
    def test_every_type_is_documented(self, status: int) -> None:
        kind, title = PROBLEMS[status]
        assert f"| {status} | `urn:problem-type:{kind}` | {title} |" in DOCUMENTED

    async def test_a_status_without_a_type_of_its_own_is_about_blank(self, app: FastAPI) -> None:
        @app.get("/teapot")
        async def refuse_to_brew() -> None:
            raise HTTPException(418)

        async with running(app) as client:
            problem = (await client.get("/teapot", headers={"Accept": PROBLEM})).json()
        assert problem == {"type": "about:blank", "title": "I'm a Teapot", "status": 418, "detail": "I'm a Teapot"}


ALLOWED = {
    "/heroes": "GET, HEAD, OPTIONS, POST",
    "/heroes/": "GET, HEAD, OPTIONS, POST",
    "/heroes/1": "DELETE, GET, HEAD, OPTIONS, PATCH",
    "/heroes/1/": "DELETE, GET, HEAD, OPTIONS, PATCH",
    "/heroes/batch": "OPTIONS, POST",
    "/heroes/batch/": "OPTIONS, POST",
    "/heroes/export": "GET, HEAD, OPTIONS",
    "/heroes/export/": "GET, HEAD, OPTIONS",
    "/heroes/{hero_id}": "DELETE, GET, HEAD, OPTIONS, PATCH",
    "/heroes/%7Bhero_id%7D": "DELETE, GET, HEAD, OPTIONS, PATCH",
    "/livez": "GET, HEAD, OPTIONS",
    "/readyz": "GET, HEAD, OPTIONS",
    "/docs": "GET, HEAD, OPTIONS",
    "/docs/": "GET, HEAD, OPTIONS",
    "/docs/swagger-ui.css": "GET, HEAD, OPTIONS",
    "/openapi.json": "GET, HEAD, OPTIONS",
    "/": "GET, HEAD, OPTIONS",
}


async def test_allow_lists_the_methods_that_are_not_405(client: httpx.AsyncClient) -> None:
    for path, allowed in ALLOWED.items():
        options = await client.options(path)
        assert (options.status_code, options.headers["Allow"], options.content) == (204, allowed, b"")
        for method in METHODS:
            response = await client.request(method, path, json=DEADPOND)
            assert (response.status_code != 405) == (method in allowed.split(", ")), (method, path)
            if response.status_code == 405:
                assert response.headers["Allow"] == allowed


async def test_options_of_a_path_that_no_route_has_is_404(client: httpx.AsyncClient) -> None:
    assert (await client.options("/nowhere")).status_code == 404


async def test_allow_does_not_list_a_method_that_only_the_other_spelling_has(app: FastAPI) -> None:
    @app.get("/rows")
    async def list_rows() -> None: ...

    @app.post("/rows/")
    async def create_row() -> None: ...

    async with running(app) as client:
        for path, allowed in (("/rows", "GET, HEAD, OPTIONS"), ("/rows/", "OPTIONS, POST")):
            assert (await client.options(path)).headers["Allow"] == allowed
            for method in METHODS:
                response = await client.request(method, path)
                assert (response.status_code != 405) == (method in allowed.split(", ")), method
