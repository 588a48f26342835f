"""Litestar and SQLAlchemy's ORM, with Litestar's own plugin for sessions and its DTOs for bodies."""

import os
from collections.abc import Sequence
from typing import Annotated, Any

from litestar import Litestar, Request, Response, delete, get, patch, post
from litestar.dto import DTOData
from litestar.exceptions import NotFoundException
from litestar.params import Parameter
from litestar.plugins.sqlalchemy import (
    EngineConfig,
    SQLAlchemyAsyncConfig,
    SQLAlchemyDTO,
    SQLAlchemyDTOConfig,
    SQLAlchemyPlugin,
)
from sqlalchemy import BigInteger, Integer, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The declarative base."""


class Hero(Base):
    """The table."""

    __tablename__ = "hero"

    name: Mapped[str] = mapped_column()
    age: Mapped[int | None] = mapped_column(default=None)
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    secret_name: Mapped[str] = mapped_column()


class HeroPublic(SQLAlchemyDTO[Hero]):
    """A hero in a response."""

    config = SQLAlchemyDTOConfig(exclude={"secret_name"})


class HeroCreate(SQLAlchemyDTO[Hero]):
    """A new hero in a request."""

    config = SQLAlchemyDTOConfig(exclude={"id"})


class HeroUpdate(SQLAlchemyDTO[Hero]):
    """The changes to a hero in a request."""

    config = SQLAlchemyDTOConfig(exclude={"id"}, partial=True)


@post("/heroes/", dto=HeroCreate, return_dto=HeroPublic, status_code=200)
async def create_hero(data: Hero, db_session: AsyncSession) -> Hero:
    """Add. The plugin commits."""
    db_session.add(data)
    await db_session.flush()
    return data


@get("/heroes/", return_dto=HeroPublic)
async def read_heroes(
    db_session: AsyncSession, offset: int = 0, limit: Annotated[int, Parameter(le=100)] = 100
) -> Sequence[Hero]:
    """Load a page."""
    heroes = await db_session.scalars(select(Hero).order_by(Hero.id).offset(offset).limit(limit))
    return heroes.all()


@get("/heroes/{hero_id:int}", return_dto=HeroPublic)
async def read_hero(hero_id: int, db_session: AsyncSession) -> Hero:
    """Load."""
    return await get_or_404(db_session, hero_id)


@patch("/heroes/{hero_id:int}", dto=HeroUpdate, return_dto=HeroPublic)
async def update_hero(hero_id: int, data: DTOData[Hero], db_session: AsyncSession) -> Hero:
    """Load, change. The plugin commits."""
    hero = await get_or_404(db_session, hero_id)
    data.update_instance(hero)
    await db_session.flush()
    return hero


@delete("/heroes/{hero_id:int}", status_code=200)
async def delete_hero(hero_id: int, db_session: AsyncSession) -> dict[str, bool]:
    """Load, delete. The plugin commits."""
    await db_session.delete(await get_or_404(db_session, hero_id))
    await db_session.flush()
    return {"ok": True}


async def get_or_404(session: AsyncSession, hero_id: int) -> Hero:
    """Load a hero, or raise 404."""
    hero = await session.get(Hero, hero_id)
    if hero is None:
        raise NotFoundException(detail="Hero not found")
    return hero


def handle_not_found(_: Request[Any, Any, Any], error: NotFoundException) -> Response[dict[str, str]]:
    """Respond as the other contenders do, without the status in the body."""
    return Response({"detail": error.detail}, status_code=404)


url = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:").replace("sqlite:", "sqlite+aiosqlite:")

app = Litestar(
    [create_hero, read_heroes, read_hero, update_hero, delete_hero],
    plugins=[
        SQLAlchemyPlugin(
            SQLAlchemyAsyncConfig(
                connection_string=url,
                engine_config=EngineConfig(pool_size=10, max_overflow=0),
                before_send_handler="autocommit",
            )
        )
    ],
    exception_handlers={NotFoundException: handle_not_found},
)
