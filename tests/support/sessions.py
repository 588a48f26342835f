"""Handlers that take sessions, served on a pool of one connection, and what must be left of them: nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import APIRouter
from sqlalchemy import URL, text
from sqlmodel import SQLModel

from app.database import build_engine
from app.heroes.models import Hero
from app.main import create_app
from app.pool import ConnectionPool
from app.sessions import SessionMaker
from app.settings import Settings
from app.urls import is_sqlite
from tests.support.app_client import running
from tests.support.heroes import DEADPOND
from tests.support.locks import async_write_lock
from tests.support.polling import wait_until_async
from tests.support.processes import TIMEOUT
from tests.support.sql import POOLER

HEROES: Any = SQLModel.metadata.tables["hero"]


def deadpond(**values: Any) -> Hero:
    return Hero(**DEADPOND, **values)


async def run(url: URL, *statements: str) -> None:
    """Execute statements in one transaction, past the service."""
    engine = build_engine(url, {}, pooler=POOLER)
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()


async def fetch_ages(url: URL) -> list[int | None]:
    """Read what is committed, past the service."""
    engine = build_engine(url, {"query_only": "ON"} if is_sqlite(url) else {}, pooler=POOLER)
    async with engine.connect() as connection:
        ages = list(await connection.scalars(text("SELECT age FROM hero ORDER BY id")))
    await engine.dispose()
    return ages


async def add_heroes(url: URL, *ages: int | None) -> None:
    rows = ", ".join(f"('x', 'x', {'NULL' if age is None else age})" for age in ages)
    await run(url, f"INSERT INTO hero (name, secret_name, age) VALUES {rows}")


def pools_of(sessionmaker: SessionMaker) -> set[ConnectionPool]:
    return {sessionmaker.reads, sessionmaker.writes}


@asynccontextmanager
async def serving(
    url: URL, *handlers: Callable[..., Any], **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, SessionMaker]]:
    """Serve handlers of POST, each under its name. In the end nothing may be left of any of them."""
    router = APIRouter()
    for handler in handlers:
        router.post(f"/{handler.__name__}")(handler)
    app = create_app(Settings(database_url=url, **{"pool_size": 1, **settings}))
    app.include_router(router)
    async with running(app) as client:
        sessionmaker: SessionMaker = app.state.sessionmaker
        sizes = {pool: pool.free for pool in pools_of(sessionmaker)}
        yield client, sessionmaker
        await ensure_nothing_is_left(sessionmaker, url, sizes)


async def ensure_nothing_is_left(sessionmaker: SessionMaker, url: URL, sizes: dict[ConnectionPool, int]) -> None:
    """Fail if a slot, a lock, an open transaction or an object of an earlier session is left."""

    async def are_free() -> bool:
        return all(pool.free == size for pool, size in sizes.items())

    await wait_until_async(are_free)
    async with asyncio.timeout(TIMEOUT):
        async with async_write_lock(url):
            pass
        for _ in range(2 * max(sizes.values())):
            async with sessionmaker() as session:
                assert not session.info
                assert not session.new
                assert not session.identity_map.values()
                session.add(deadpond())
                await session.commit()
    assert all(pool.free == size for pool, size in sizes.items())
