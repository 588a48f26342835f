"""Bare ASGI, asyncpg and the standard library's JSON, without a framework or validation: the cost of Python itself."""

import json
import os
from typing import Any
from urllib.parse import parse_qs

import asyncpg
from starlette.types import Receive, Scope, Send  # types only

COLUMNS = ("name", "age", "secret_name")


class Heroes:
    """The five operations on a pool. Each returns the JSON value of the response, or None for a missing hero."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool

    async def create(self, hero: dict[str, Any]) -> object:
        """Insert, and return the new row."""
        statement = "INSERT INTO hero (name, age, secret_name) VALUES ($1, $2, $3) RETURNING name, age, id"
        return to_dict(await self.pool.fetchrow(statement, hero["name"], hero.get("age"), hero["secret_name"]))

    async def list(self, offset: int, limit: int) -> object:
        """Select a page."""
        statement = "SELECT name, age, id FROM hero ORDER BY id OFFSET $1 LIMIT $2"
        return [dict(row) for row in await self.pool.fetch(statement, offset, limit)]

    async def read(self, hero_id: int) -> object:
        """Select one."""
        return to_dict(await self.pool.fetchrow("SELECT name, age, id FROM hero WHERE id = $1", hero_id))

    async def update(self, hero_id: int, hero: dict[str, Any]) -> object:
        """Set the columns that were sent."""
        changes = {column: hero[column] for column in COLUMNS if column in hero} or {"id": hero_id}
        columns = ", ".join(f"{column} = ${number}" for number, column in enumerate(changes, start=2))
        statement = f"UPDATE hero SET {columns} WHERE id = $1 RETURNING name, age, id"  # noqa: S608 - only names from COLUMNS
        return to_dict(await self.pool.fetchrow(statement, hero_id, *changes.values()))

    async def delete(self, hero_id: int) -> object:
        """Delete one."""
        deleted = await self.pool.fetchval("DELETE FROM hero WHERE id = $1 RETURNING id", hero_id)
        return {"ok": True} if deleted else None


def to_dict(row: asyncpg.Record | None) -> dict[str, Any] | None:
    """Convert a row for JSON."""
    return dict(row) if row else None


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Handle one request, or the lifespan."""
    if scope["type"] == "lifespan":
        await run_lifespan(scope["state"], receive, send)
        return
    result = await dispatch(scope, receive)
    status = 404 if result is None else 200
    body = json.dumps({"detail": "Hero not found"} if result is None else result, separators=(",", ":")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def dispatch(scope: Scope, receive: Receive) -> object:
    """Run the operation for a request."""
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
    """Read and parse the whole body."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    hero: dict[str, Any] = json.loads(body)
    return hero


async def run_lifespan(state: dict[str, Any], receive: Receive, send: Send) -> None:
    """Keep the pool open from startup to shutdown."""
    await receive()
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=10, max_size=10) as pool:
        state["heroes"] = Heroes(pool)
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
