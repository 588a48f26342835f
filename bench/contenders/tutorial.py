"""The tutorial's design: sync handlers in threads, a session per request, objects loaded, changed and refreshed.

DATABASE_URL names the database: a SQLAlchemy URL with a synchronous driver, by default the tutorial's own file.
"""

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query
from sqlmodel import Field, Session, SQLModel, create_engine, select


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


url = os.environ.get("DATABASE_URL", "sqlite:///database.db")
engine = create_engine(url, connect_args={"check_same_thread": False} if url.startswith("sqlite") else {})


def get_session() -> Iterator[Session]:
    """Open a session for one request."""
    with Session(engine) as session:
        yield session


SessionDep = Annotated[Session, Depends(get_session)]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Create missing tables."""
    SQLModel.metadata.create_all(engine)
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/heroes/", response_model=HeroPublic)
def create_hero(hero: HeroCreate, session: SessionDep) -> Hero:
    """Add, commit, refresh."""
    row = Hero.model_validate(hero)
    session.add(row)
    session.commit()
    session.refresh(row)
    return row


@app.get("/heroes/", response_model=list[HeroPublic])
def read_heroes(session: SessionDep, offset: int = 0, limit: Annotated[int, Query(le=100)] = 100) -> Sequence[Hero]:
    """Load a page, without an order."""
    return session.exec(select(Hero).offset(offset).limit(limit)).all()


@app.get("/heroes/{hero_id}", response_model=HeroPublic)
def read_hero(hero_id: int, session: SessionDep) -> Hero:
    """Load."""
    return get_or_404(session, hero_id)


@app.patch("/heroes/{hero_id}", response_model=HeroPublic)
def update_hero(hero_id: int, hero: HeroUpdate, session: SessionDep) -> Hero:
    """Load, change, commit, refresh."""
    row = get_or_404(session, hero_id)
    row.sqlmodel_update(hero.model_dump(exclude_unset=True))
    session.add(row)
    session.commit()
    session.refresh(row)
    return row


@app.delete("/heroes/{hero_id}")
def delete_hero(hero_id: int, session: SessionDep) -> dict[str, bool]:
    """Load, delete, commit."""
    session.delete(get_or_404(session, hero_id))
    session.commit()
    return {"ok": True}


def get_or_404(session: Session, hero_id: int) -> Hero:
    """Load a hero, or raise 404."""
    hero = session.get(Hero, hero_id)
    if hero is None:
        raise HTTPException(status_code=404, detail="Hero not found")
    return hero
