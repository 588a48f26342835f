"""The contract: only servers with the same responses are compared."""

import json

from bench.databases import HEROES
from bench.servers import Server

NAME = "Deadpond"
SECRET_NAME = "Dive Wilson"  # noqa: S105 - the tutorial's


def check(server: Server) -> None:
    """Compare each operation's response with the tutorial's, byte by byte, on a database that was just reset.

    Raises:
        AssertionError: one differs.
    """
    path = f"/heroes/{HEROES + 1}"
    hero = {"name": NAME, "age": None, "id": HEROES + 1}
    first = [{"name": f"Hero number {i}", "age": i % 100 if i % 10 else None, "id": i} for i in range(1, 101)]
    expect(server.request("GET", "/heroes/1"), 200, first[0])
    expect(server.request("GET", "/heroes/?limit=100"), 200, first)
    expect(server.request("POST", "/heroes/", {"name": NAME, "secret_name": SECRET_NAME}), 200, hero)
    expect(server.request("PATCH", path, {"age": 48}), 200, hero | {"age": 48})
    expect(server.request("PATCH", path, {"age": None}), 200, hero)
    expect(server.request("GET", path), 200, hero)
    expect(server.request("DELETE", path), 200, {"ok": True})
    for method, body in (("GET", None), ("PATCH", {"age": 48}), ("DELETE", None)):
        expect(server.request(method, path, body), 404, {"detail": "Hero not found"})


def expect(response: tuple[int, str], status: int, body: object) -> None:
    """Compare a response with the expected status and JSON.

    Raises:
        AssertionError: it differs.
    """
    expected = (status, json.dumps(body, separators=(",", ":")))
    if response != expected:
        raise AssertionError(f"the response is {response} instead of {expected}")
