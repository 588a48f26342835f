"""The baseline: FastAPI with the tutorial's models, and handwritten SQL on asyncpg, one statement per operation."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, HTTPException, Query, Request
from sqlmodel import SQLModel


class HeroPublic(SQLModel):
    """A hero in a response."""

    name: str
    age: int | None
    id: int


class HeroCreate(SQLModel):
    """A new hero in a request."""

    name: str
    age: int | None = None
    secret_name: str


class HeroUpdate(SQLModel):
    """The changes to a hero in a request: the fields that were sent are the columns to set."""

    name: str | None = None
    age: int | None = None
    secret_name: str | None = None


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, asyncpg.Pool]]:
    """Connect, and add the pool to the state of each request."""
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=10, max_size=10) as pool:
        yield {"pool": pool}


app = FastAPI(lifespan=lifespan)


@app.post("/heroes/", response_model=HeroPublic)
async def create_hero(hero: HeroCreate, request: Request) -> dict[str, Any]:
    """Insert, and return the new row."""
    statement = "INSERT INTO hero (name, age, secret_name) VALUES ($1, $2, $3) RETURNING name, age, id"
    return row_or_404(await request.state.pool.fetchrow(statement, hero.name, hero.age, hero.secret_name))


@app.get("/heroes/", response_model=list[HeroPublic])
async def read_heroes(
    request: Request, offset: int = 0, limit: Annotated[int, Query(le=100)] = 100
) -> list[dict[str, Any]]:
    """Select a page."""
    statement = "SELECT name, age, id FROM hero ORDER BY id OFFSET $1 LIMIT $2"
    return [dict(row) for row in await request.state.pool.fetch(statement, offset, limit)]


@app.get("/heroes/{hero_id}", response_model=HeroPublic)
async def read_hero(hero_id: int, request: Request) -> dict[str, Any]:
    """Select one."""
    return row_or_404(await request.state.pool.fetchrow("SELECT name, age, id FROM hero WHERE id = $1", hero_id))


@app.patch("/heroes/{hero_id}", response_model=HeroPublic)
async def update_hero(hero_id: int, hero: HeroUpdate, request: Request) -> dict[str, Any]:
    """Set the columns that were sent."""
    changes = hero.model_dump(exclude_unset=True) or {"id": hero_id}
    columns = ", ".join(f"{column} = ${number}" for number, column in enumerate(changes, start=2))
    statement = f"UPDATE hero SET {columns} WHERE id = $1 RETURNING name, age, id"  # noqa: S608 - the model's field names
    return row_or_404(await request.state.pool.fetchrow(statement, hero_id, *changes.values()))


@app.delete("/heroes/{hero_id}")
async def delete_hero(hero_id: int, request: Request) -> dict[str, bool]:
    """Delete one."""
    row_or_404(await request.state.pool.fetchrow("DELETE FROM hero WHERE id = $1 RETURNING id", hero_id))
    return {"ok": True}


def row_or_404(row: asyncpg.Record | None) -> dict[str, Any]:
    """Convert a row, or raise 404 if there is none."""
    if row is None:
        raise HTTPException(status_code=404, detail="Hero not found")
    return dict(row)
