"""The code in docs/development.md works as it stands there."""

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header
from sqlalchemy import URL
from sqlmodel.ext.asyncio.session import AsyncSession

from app import sessions
from app.heroes.models import Hero, HeroCreate, HeroPublic
from app.security import CallerDep
from tests.support.app_client import running
from tests.support.heroes import DEADPOND
from tests.support.processes import ROOT

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/development.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def names(app: FastAPI) -> dict[str, Any]:
    """What the code takes from its surroundings, and what it defines. Villains and users are heroes here."""
    names = {name: getattr(sessions, name) for name in dir(sessions) if name.endswith("Dep") or name.startswith("get_")}
    names |= {"Annotated": Annotated, "AsyncSession": AsyncSession, "BackgroundTasks": BackgroundTasks}
    names |= {
        "CallerDep": CallerDep,
        "Depends": Depends,
        "TokenDep": Annotated[str, Header()],
        "app": app,
        "router": APIRouter(),
    }
    names |= {"Villain": Hero, "VillainCreate": HeroCreate, "VillainPublic": HeroPublic}
    names |= {"User": Hero, "UserPublic": HeroPublic}
    for block in BLOCKS:
        exec(compile(block, "docs/development.md", "exec", dont_inherit=True), names)  # noqa: S102 - it is what is tested
    return names


@pytest.fixture
async def client(app: FastAPI, names: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app with the operations of the page, without its overrides, and with a current user."""

    async def get_current_user(session: sessions.ReadSessionDep) -> Hero:
        return await session.get_one(Hero, 1)

    app.include_router(names["router"])
    app.dependency_overrides = {names["get_current_user"]: get_current_user}
    async with running(app) as client:
        yield client


async def test_an_operation_commits_what_it_adds(client: httpx.AsyncClient) -> None:
    created = (await client.post("/villains/", json=DEADPOND)).json()
    assert created == {"name": "Deadpond", "age": None, "id": 1}
    assert (await client.get("/heroes/1")).json() == created


async def test_a_handler_saves_the_user_that_a_dependency_has_read(client: httpx.AsyncClient) -> None:
    await client.post("/heroes/", json=DEADPOND)
    assert (await client.patch("/me?age=30")).json()["age"] == 30
    assert (await client.get("/heroes/1")).json()["age"] == 30


async def test_a_handler_without_tokens_has_no_caller(client: httpx.AsyncClient) -> None:
    assert (await client.get("/caller")).json() is None


async def test_a_background_task_has_a_session_of_its_own(client: httpx.AsyncClient) -> None:
    assert (await client.post("/villains/1/report")).status_code == 200


async def test_a_script_opens_the_database(names: dict[str, Any], url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    await names["main"]()


def test_the_overrides_replace_each_session(names: dict[str, Any], app: FastAPI) -> None:
    replaced = {sessions.get_session, sessions.get_autocommit_session, sessions.get_read_session}
    assert app.dependency_overrides.keys() == replaced
    assert set(app.dependency_overrides.values()) == {names["override"]}
