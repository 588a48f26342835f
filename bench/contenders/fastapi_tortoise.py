"""FastAPI and Tortoise ORM: objects are loaded, changed and saved, with one statement for each step."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query
from pydantic import BaseModel
from tortoise import fields
from tortoise.contrib.fastapi import RegisterTortoise
from tortoise.models import Model


class Hero(Model):
    """The table."""

    id = fields.BigIntField(primary_key=True)
    name = fields.TextField()
    age = fields.IntField(null=True)
    secret_name = fields.TextField()


class HeroPublic(BaseModel):
    """A hero in a response."""

    name: str
    age: int | None
    id: int


class HeroCreate(BaseModel):
    """A new hero in a request."""

    name: str
    age: int | None = None
    secret_name: str


class HeroUpdate(BaseModel):
    """The changes to a hero in a request."""

    name: str | None = None
    age: int | None = None
    secret_name: str | None = None


# On SQLite, Tortoise has a single connection, and treats these parameters as pragmas.
url = os.environ["DATABASE_URL"]
if not url.startswith("sqlite"):
    url += f"{'&' if '?' in url else '?'}minsize=10&maxsize=10"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connect."""
    async with RegisterTortoise(app, db_url=url, modules={"models": [__name__]}):
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/heroes/", response_model=HeroPublic)
async def create_hero(hero: HeroCreate) -> Hero:
    """Create."""
    return await Hero.create(**hero.model_dump())


@app.get("/heroes/", response_model=list[HeroPublic])
async def read_heroes(offset: int = 0, limit: Annotated[int, Query(le=100)] = 100) -> list[Hero]:
    """Load a page."""
    return await Hero.all().order_by("id").offset(offset).limit(limit)


@app.get("/heroes/{hero_id}", response_model=HeroPublic)
async def read_hero(hero_id: int) -> Hero:
    """Load."""
    return await get_or_404(hero_id)


@app.patch("/heroes/{hero_id}", response_model=HeroPublic)
async def update_hero(hero_id: int, hero: HeroUpdate) -> Hero:
    """Load, change, save what has changed."""
    row = await get_or_404(hero_id)
    changes = hero.model_dump(exclude_unset=True)
    await row.update_from_dict(changes).save(update_fields=changes)
    return row


@app.delete("/heroes/{hero_id}")
async def delete_hero(hero_id: int) -> dict[str, bool]:
    """Load, delete."""
    row = await get_or_404(hero_id)
    await row.delete()
    return {"ok": True}


async def get_or_404(hero_id: int) -> Hero:
    """Load a hero, or raise 404."""
    hero = await Hero.get_or_none(id=hero_id)
    if hero is None:
        raise HTTPException(status_code=404, detail="Hero not found")
    return hero
