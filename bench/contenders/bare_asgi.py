"""Bare ASGI, asyncpg and the standard library's JSON, without a framework or validation: what Python itself costs."""

import json
import os
from typing import Any
from urllib.parse import parse_qs

import asyncpg
from starlette.types import Receive, Scope, Send  # names for types, no code

COLUMNS = ("name", "age", "secret_name")


class Heroes:
    """The five operations on a pool. Each returns what is to be sent as JSON, or None for a hero that isn't there."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool

    async def create(self, hero: dict[str, Any]) -> object:
        """Insert, and return what the database made of it."""
        statement = "INSERT INTO hero (name, age, secret_name) VALUES ($1, $2, $3) RETURNING name, age, id"
        return public(await self.pool.fetchrow(statement, hero["name"], hero.get("age"), hero["secret_name"]))

    async def list(self, offset: int, limit: int) -> object:
        """Select a page."""
        statement = "SELECT name, age, id FROM hero ORDER BY id OFFSET $1 LIMIT $2"
        return [dict(row) for row in await self.pool.fetch(statement, offset, limit)]

    async def read(self, hero_id: int) -> object:
        """Select one."""
        return public(await self.pool.fetchrow("SELECT name, age, id FROM hero WHERE id = $1", hero_id))

    async def update(self, hero_id: int, hero: dict[str, Any]) -> object:
        """Set the columns that were sent."""
        changes = {column: hero[column] for column in COLUMNS if column in hero} or {"id": hero_id}
        columns = ", ".join(f"{column} = ${number}" for number, column in enumerate(changes, start=2))
        statement = f"UPDATE hero SET {columns} WHERE id = $1 RETURNING name, age, id"  # noqa: S608 - COLUMNS alone
        return public(await self.pool.fetchrow(statement, hero_id, *changes.values()))

    async def delete(self, hero_id: int) -> object:
        """Delete one."""
        deleted = await self.pool.fetchval("DELETE FROM hero WHERE id = $1 RETURNING id", hero_id)
        return {"ok": True} if deleted else None


def public(row: asyncpg.Record | None) -> dict[str, Any] | None:
    """Make a row something that JSON can hold."""
    return dict(row) if row else None


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one request, or the life of the process."""
    if scope["type"] == "lifespan":
        await live(scope["state"], receive, send)
        return
    answer = await route(scope, receive)
    status = 404 if answer is None else 200
    body = json.dumps({"detail": "Hero not found"} if answer is None else answer, separators=(",", ":")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def route(scope: Scope, receive: Receive) -> object:
    """Find the operation for a request, and run it."""
    heroes: Heroes = scope["state"]["heroes"]
    method, hero_id = scope["method"], scope["path"].removeprefix("/heroes/")
    if hero_id == "":
        if method == "POST":
            return await heroes.create(await read_json(receive))
        query = parse_qs(scope["query_string"].decode())
        return await heroes.list(int(query.get("offset", ["0"])[0]), int(query.get("limit", ["100"])[0]))
    if method == "GET":
        return await heroes.read(int(hero_id))
    if method == "PATCH":
        return await heroes.update(int(hero_id), await read_json(receive))
    return await heroes.delete(int(hero_id))


async def read_json(receive: Receive) -> dict[str, Any]:
    """Read a body to its end."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    hero: dict[str, Any] = json.loads(body)
    return hero


async def live(state: dict[str, Any], receive: Receive, send: Send) -> None:
    """Hold the pool from the server's start to its end."""
    await receive()
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=10, max_size=10) as pool:
        state["heroes"] = Heroes(pool)
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
