"""Compatibility with the tutorial: its clients get the same responses here, byte for byte."""

from typing import Any

import httpx
import pytest

from tests.support.heroes import DEADPOND, RUSTY_MAN
from tests.support.processes import free_port, server

SESSION: list[tuple[str, str, dict[str, Any] | None]] = [
    ("GET", "/heroes/", None),
    ("GET", "/heroes/1", None),
    ("POST", "/heroes/", DEADPOND),
    ("POST", "/heroes/", RUSTY_MAN),
    (
        "POST",
        "/heroes/",
        {"name": "Spider-Boy", "age": None, "secret_name": "Pedro Parqueador", "id": 9, "power": "webs"},
    ),
    ("POST", "/heroes/", {"name": 'Zo\N{LATIN SMALL LETTER E WITH DIAERESIS} "\\/\t\N{ROCKET}', "secret_name": "x"}),
    ("GET", "/heroes/", None),
    ("GET", "/heroes/?offset=1&limit=2", None),
    ("GET", "/heroes/?limit=0", None),
    ("GET", "/heroes/?offset=1000", None),
    ("GET", "/heroes/?unknown=1", None),
    ("GET", "/heroes/2", None),
    ("PATCH", "/heroes/2", {"name": "Rusty-Woman"}),
    ("PATCH", "/heroes/2", {"age": None, "id": 9}),
    ("PATCH", "/heroes/2", {"secret_name": "Tammy Sharp"}),
    ("PATCH", "/heroes/2", {}),
    ("PATCH", "/heroes/99", {"age": 1}),
    ("DELETE", "/heroes/1", None),
    ("DELETE", "/heroes/1", None),
    ("GET", "/heroes/1", None),
    ("GET", "/heroes/", None),
    ("GET", "/nowhere", None),
]


@pytest.fixture(scope="session")  # a module runs once for each kind of database
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[httpx.Response]:
    """The responses of the tutorial's own code."""
    port = free_port()
    command = ("uvicorn", "bench.contenders.tutorial:app", "--port", str(port))
    changes = {"DATABASE_URL": f"sqlite:///{tmp_path_factory.mktemp('tutorial')}/database.db"}
    with server(*command, port=port, changes=changes) as client:
        return [client.request(method, path, json=body) for method, path, body in SESSION]


async def test_every_response_of_a_session_equals_the_tutorials(
    expected: list[httpx.Response], client: httpx.AsyncClient
) -> None:
    for (method, path, body), of_tutorial in zip(SESSION, expected, strict=True):
        response = await client.request(method, path, json=body)
        assert (method, path, response.status_code, response.content) == (
            method,
            path,
            of_tutorial.status_code,
            of_tutorial.content,
        )
        assert response.headers["Content-Type"] == of_tutorial.headers["Content-Type"]
