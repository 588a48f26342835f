"""A line-by-line port of the tutorial to `async` and `await`."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Field, SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession


class HeroBase(SQLModel):
    """The tutorial's fields."""

    name: str = Field(index=True)
    age: int | None = Field(default=None, index=True)


class Hero(HeroBase, table=True):
    """The tutorial's table."""

    id: int | None = Field(default=None, primary_key=True)
    secret_name: str


class HeroPublic(HeroBase):
    """The tutorial's response."""

    id: int


class HeroCreate(HeroBase):
    """The tutorial's request."""

    secret_name: str


class HeroUpdate(HeroBase):
    """The tutorial's changes."""

    name: str | None = None  # type: ignore[assignment]  # as the tutorial has it
    age: int | None = None
    secret_name: str | None = None


url = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:").replace("sqlite:", "sqlite+aiosqlite:")
engine = create_async_engine(url)


async def get_session() -> AsyncIterator[AsyncSession]:
    """Open a session for one request."""
    async with AsyncSession(engine) as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Create missing tables."""
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/heroes/", response_model=HeroPublic)
async def create_hero(hero: HeroCreate, session: SessionDep) -> Hero:
    """Add, commit, refresh."""
    row = Hero.model_validate(hero)
    session.add(row)
    await session.commit()
    await session.refresh(row)
    return row


@app.get("/heroes/", response_model=list[HeroPublic])
async def read_heroes(
    session: SessionDep, offset: int = 0, limit: Annotated[int, Query(le=100)] = 100
) -> Sequence[Hero]:
    """Load a page."""
    heroes = await session.exec(select(Hero).order_by(col(Hero.id)).offset(offset).limit(limit))
    return heroes.all()


@app.get("/heroes/{hero_id}", response_model=HeroPublic)
async def read_hero(hero_id: int, session: SessionDep) -> Hero:
    """Load."""
    return await get_or_404(session, hero_id)


@app.patch("/heroes/{hero_id}", response_model=HeroPublic)
async def update_hero(hero_id: int, hero: HeroUpdate, session: SessionDep) -> Hero:
    """Load, change, commit, refresh."""
    row = await get_or_404(session, hero_id)
    row.sqlmodel_update(hero.model_dump(exclude_unset=True))
    session.add(row)
    await session.commit()
    await session.refresh(row)
    return row


@app.delete("/heroes/{hero_id}")
async def delete_hero(hero_id: int, session: SessionDep) -> dict[str, bool]:
    """Load, delete, commit."""
    await session.delete(await get_or_404(session, hero_id))
    await session.commit()
    return {"ok": True}


async def get_or_404(session: AsyncSession, hero_id: int) -> Hero:
    """Load a hero, or raise 404."""
    hero = await session.get(Hero, hero_id)
    if hero is None:
        raise HTTPException(status_code=404, detail="Hero not found")
    return hero
