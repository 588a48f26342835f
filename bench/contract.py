"""The contract: only servers that answer alike are compared."""

import json

from bench.databases import HEROES
from bench.servers import Server

NAME = "Deadpond"
SECRET_NAME = "Dive Wilson"  # noqa: S105 - the tutorial's


def check(server: Server) -> None:
    """Hold each operation's answer against the tutorial's, to the byte, on a database that was just reset.

    Raises:
        AssertionError: one differs.
    """
    path = f"/heroes/{HEROES + 1}"
    hero = {"name": NAME, "age": None, "id": HEROES + 1}
    first = [{"name": f"Hero number {i}", "age": i % 100 if i % 10 else None, "id": i} for i in range(1, 101)]
    expect(server.ask("GET", "/heroes/1"), 200, first[0])
    expect(server.ask("GET", "/heroes/?limit=100"), 200, first)
    expect(server.ask("POST", "/heroes/", {"name": NAME, "secret_name": SECRET_NAME}), 200, hero)
    expect(server.ask("PATCH", path, {"age": 48}), 200, hero | {"age": 48})
    expect(server.ask("PATCH", path, {"age": None}), 200, hero)
    expect(server.ask("GET", path), 200, hero)
    expect(server.ask("DELETE", path), 200, {"ok": True})
    for method, body in (("GET", None), ("PATCH", {"age": 48}), ("DELETE", None)):
        expect(server.ask(method, path, body), 404, {"detail": "Hero not found"})


def expect(answer: tuple[int, str], status: int, body: object) -> None:
    """Compare an answer with what it has to be.

    Raises:
        AssertionError: it differs.
    """
    expected = (status, json.dumps(body, separators=(",", ":")))
    if answer != expected:
        raise AssertionError(f"{answer} instead of {expected}")
