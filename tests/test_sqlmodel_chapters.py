"""What SQLModel's documentation teaches for FastAPI works here, made asynchronous by `await` and `selectinload` alone.

Teams and their heroes, heroes with a password, and tests with a session of their own. The code is as a newcomer to
this project writes it: in an app made from its parts, with tables of its own.
"""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Query
from sqlalchemy import URL, Connection, text
from sqlalchemy.orm import registry, selectinload
from sqlmodel import Field, Relationship, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app import errors
from app.database import build_engine
from app.main import open_sessionmaker
from app.sessions import SessionDep, get_session
from app.settings import Settings
from app.urls import is_sqlite
from tests.support.app_client import running
from tests.support.databases import Databases
from tests.support.sql import execute, fetch_value, run_in_transaction

CHAPTERS = registry()  # else the tables would be among those of this project


class TeamBase(SQLModel, registry=CHAPTERS):
    name: str = Field(index=True)
    headquarters: str


class Team(TeamBase, table=True):
    id: int | None = Field(default=None, primary_key=True)
    heroes: list["Hero"] = Relationship(back_populates="team")


class TeamCreate(TeamBase):
    pass


class TeamPublic(TeamBase):
    id: int


class HeroBase(SQLModel, registry=CHAPTERS):
    name: str = Field(index=True)
    age: int | None = Field(default=None, index=True)
    team_id: int | None = Field(default=None, foreign_key="team.id")


class Hero(HeroBase, table=True):
    id: int | None = Field(default=None, primary_key=True)
    hashed_password: str
    team: Team | None = Relationship(back_populates="heroes")


class HeroCreate(HeroBase):
    password: str


class HeroPublic(HeroBase):
    id: int


class HeroUpdate(SQLModel):
    name: str | None = None
    age: int | None = None
    password: str | None = None
    team_id: int | None = None


class HeroPublicWithTeam(HeroPublic):
    team: TeamPublic | None = None


class TeamPublicWithHeroes(TeamPublic):
    heroes: list[HeroPublic] = []


def hash_password(password: str, salt: str | None = None) -> str:
    salt = salt or secrets.token_hex(8)
    digest = hashlib.scrypt(password.encode(), salt=salt.encode(), n=2, r=1, p=1)  # as cheap as it gets, for tests
    return f"{salt}${digest.hex()}"


def verify_password(password: str, hashed: str) -> bool:
    return hash_password(password, hashed.partition("$")[0]) == hashed


router = APIRouter()


@router.post("/teams/", response_model=TeamPublic)
async def create_team(team: TeamCreate, session: SessionDep) -> Team:
    db_team = Team.model_validate(team)
    session.add(db_team)
    await session.commit()
    await session.refresh(db_team)
    return db_team


@router.get("/teams/{team_id}", response_model=TeamPublicWithHeroes)
async def read_team(team_id: int, session: SessionDep) -> Team:
    team = await session.get(Team, team_id, options=[selectinload(Team.heroes)])  # type: ignore[arg-type]  # see below
    if team is None:
        raise HTTPException(status_code=404, detail="Team not found")
    return team


@router.post("/teams/{team_id}/heroes", response_model=HeroPublic)
async def add_to_team(team_id: int, hero: HeroCreate, session: SessionDep) -> Hero:
    team = await read_team(team_id, session)
    db_hero = Hero.model_validate(hero, update={"hashed_password": hash_password(hero.password)})
    team.heroes.append(db_hero)
    await session.commit()
    await session.refresh(db_hero)
    return db_hero


@router.post("/heroes/", response_model=HeroPublic)
async def create_hero(hero: HeroCreate, session: SessionDep) -> Hero:
    db_hero = Hero.model_validate(hero, update={"hashed_password": hash_password(hero.password)})
    session.add(db_hero)
    await session.commit()
    await session.refresh(db_hero)
    return db_hero


@router.get("/heroes/", response_model=list[HeroPublicWithTeam])
async def read_heroes(session: SessionDep, offset: int = 0, limit: Annotated[int, Query(le=100)] = 100) -> list[Hero]:
    # SQLModel annotates a relationship as what an instance has. Of the class it is an attribute of SQLAlchemy's.
    with_team = selectinload(Hero.team)  # type: ignore[arg-type]  # see above
    statement = select(Hero).options(with_team).order_by("id").offset(offset).limit(limit)
    return list((await session.exec(statement)).all())


@router.get("/heroes/{hero_id}", response_model=HeroPublicWithTeam)
async def read_hero(hero_id: int, session: SessionDep) -> Hero:
    hero = await session.get(Hero, hero_id, options=[selectinload(Hero.team)])  # type: ignore[arg-type]  # see above
    if hero is None:
        raise HTTPException(status_code=404, detail="Hero not found")
    return hero


@router.patch("/heroes/{hero_id}", response_model=HeroPublic)
async def update_hero(hero_id: int, hero: HeroUpdate, session: SessionDep) -> Hero:
    db_hero = await session.get(Hero, hero_id)
    if db_hero is None:
        raise HTTPException(status_code=404, detail="Hero not found")
    hero_data = hero.model_dump(exclude_unset=True)
    extra_data = {}
    if "password" in hero_data:
        extra_data["hashed_password"] = hash_password(hero_data["password"])
    db_hero.sqlmodel_update(hero_data, update=extra_data)
    session.add(db_hero)
    await session.commit()
    await session.refresh(db_hero)
    return db_hero


@router.delete("/heroes/{hero_id}")
async def delete_hero(hero_id: int, session: SessionDep) -> dict[str, bool]:
    hero = await session.get(Hero, hero_id)
    if hero is None:
        raise HTTPException(status_code=404, detail="Hero not found")
    await session.delete(hero)
    await session.commit()
    return {"ok": True}


@pytest.fixture(scope="module")
def tables_url(databases: Databases) -> Iterator[URL]:
    """A database at head, but with the tables above, of which one takes the place of one of this project's."""

    def replace_tables(connection: Connection) -> None:
        connection.execute(text("DROP TABLE hero"))
        CHAPTERS.metadata.create_all(connection)

    url = databases.migrated()
    run_in_transaction(url, replace_tables)
    yield url
    databases.drop(url)


@pytest.fixture
def chapters_url(tables_url: URL) -> URL:
    """It, without rows."""
    empty = ("DELETE FROM hero", "DELETE FROM team")
    execute(tables_url, *(empty if is_sqlite(tables_url) else ("TRUNCATE hero, team RESTART IDENTITY",)))
    return tables_url


@pytest.fixture
async def app(chapters_url: URL) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_sessionmaker(Settings(database_url=chapters_url)) as app.state.sessionmaker:
            yield

    app = FastAPI(lifespan=lifespan, exception_handlers=errors.HANDLERS)
    app.include_router(router)
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with running(app) as client:
        yield client


PREVENTERS = {"name": "Preventers", "headquarters": "Sharp Tower"}
Z_FORCE = {"name": "Z-Force", "headquarters": "Sister Margaret's Bar"}
RUSTY_MAN = {"name": "Rusty-Man", "age": 48, "password": "auntie"}
DEADPOND = {"name": "Deadpond", "password": "chimichanga"}


def fetch_password(url: URL) -> str:
    return str(fetch_value(url, "SELECT hashed_password FROM hero"))


class TestRelationships:
    @pytest.fixture(autouse=True)
    async def teams(self, client: httpx.AsyncClient) -> None:
        """Two teams, of which the first has a hero."""
        for number, team in enumerate((PREVENTERS, Z_FORCE), start=1):
            assert (await client.post("/teams/", json=team)).json() == {**team, "id": number}
        created = await client.post("/heroes/", json={**RUSTY_MAN, "team_id": 1})
        assert created.json() == {"name": "Rusty-Man", "age": 48, "team_id": 1, "id": 1}

    async def test_a_hero_is_shown_with_its_team(self, client: httpx.AsyncClient) -> None:
        shown = {"name": "Rusty-Man", "age": 48, "team_id": 1, "id": 1, "team": {**PREVENTERS, "id": 1}}
        assert (await client.get("/heroes/1")).json() == shown
        assert (await client.get("/heroes/")).json() == [shown]

    async def test_a_hero_without_a_team_is_shown_without_one(self, client: httpx.AsyncClient) -> None:
        await client.post("/heroes/", json=DEADPOND)
        assert (await client.get("/heroes/2")).json()["team"] is None
        assert [hero["team"] and hero["team"]["id"] for hero in (await client.get("/heroes/")).json()] == [1, None]

    async def test_a_team_is_shown_with_its_heroes(self, client: httpx.AsyncClient) -> None:
        hero = {"name": "Rusty-Man", "age": 48, "team_id": 1, "id": 1}
        assert (await client.get("/teams/1")).json() == {**PREVENTERS, "id": 1, "heroes": [hero]}
        assert (await client.get("/teams/2")).json() == {**Z_FORCE, "id": 2, "heroes": []}

    async def test_a_hero_that_is_appended_to_a_team_is_saved(self, client: httpx.AsyncClient) -> None:
        created = await client.post("/teams/2/heroes", json=DEADPOND)
        assert created.json() == {"name": "Deadpond", "age": None, "team_id": 2, "id": 2}
        assert [hero["name"] for hero in (await client.get("/teams/2")).json()["heroes"]] == ["Deadpond"]

    async def test_a_hero_changes_its_team(self, client: httpx.AsyncClient) -> None:
        assert (await client.patch("/heroes/1", json={"team_id": 2})).json()["team_id"] == 2
        assert (await client.get("/teams/1")).json()["heroes"] == []
        assert (await client.get("/heroes/1")).json()["team"] == {**Z_FORCE, "id": 2}

    async def test_a_hero_joins_no_team_that_does_not_exist(self, client: httpx.AsyncClient) -> None:
        assert (await client.patch("/heroes/1", json={"team_id": 3})).status_code == 409
        assert (await client.get("/heroes/1")).json()["team_id"] == 1


class TestUpdate:
    @pytest.fixture(autouse=True)
    async def hero(self, client: httpx.AsyncClient) -> None:
        """A hero."""
        await client.post("/heroes/", json=RUSTY_MAN)

    async def test_a_password_is_stored_as_its_hash(self, chapters_url: URL) -> None:
        stored = await asyncio.to_thread(fetch_password, chapters_url)
        assert "auntie" not in stored
        assert verify_password("auntie", stored)

    async def test_what_is_not_sent_stays_as_it_is(self, client: httpx.AsyncClient, chapters_url: URL) -> None:
        updated = await client.patch("/heroes/1", json={"age": 49})
        assert updated.json() == {"name": "Rusty-Man", "age": 49, "team_id": None, "id": 1}
        assert (await client.get("/heroes/1")).json()["age"] == 49
        assert verify_password("auntie", await asyncio.to_thread(fetch_password, chapters_url))

    async def test_a_new_password_takes_the_place_of_the_old(
        self, client: httpx.AsyncClient, chapters_url: URL
    ) -> None:
        assert (await client.patch("/heroes/1", json={"password": "pepper"})).status_code == 200
        stored = await asyncio.to_thread(fetch_password, chapters_url)
        assert verify_password("pepper", stored)
        assert not verify_password("auntie", stored)

    async def test_a_deleted_hero_is_gone(self, client: httpx.AsyncClient) -> None:
        assert (await client.delete("/heroes/1")).json() == {"ok": True}
        assert (await client.get("/heroes/1")).status_code == 404
        assert (await client.delete("/heroes/1")).status_code == 404


class TestTesting:
    """The app on a session of the test's own, and without its lifespan."""

    @pytest.fixture
    async def session(self, chapters_url: URL) -> AsyncIterator[AsyncSession]:
        """A session of SQLModel's."""
        engine = build_engine(chapters_url, {})
        async with AsyncSession(engine) as session:
            yield session
        await engine.dispose()

    @pytest.fixture
    async def client(self, app: FastAPI, session: AsyncSession) -> AsyncIterator[httpx.AsyncClient]:
        """A client of the app on that session."""
        app.dependency_overrides[get_session] = lambda: session
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://heroes.test") as client:
            yield client

    async def test_a_test_sees_what_the_app_has_written(self, client: httpx.AsyncClient, session: AsyncSession) -> None:
        assert (await client.post("/heroes/", json=DEADPOND)).status_code == 200
        hero = (await session.exec(select(Hero))).one()
        assert (hero.name, hero.age) == ("Deadpond", None)

    async def test_the_app_sees_what_a_test_has_written(self, client: httpx.AsyncClient, session: AsyncSession) -> None:
        session.add(Hero(name="Deadpond", hashed_password="x", team=Team.model_validate(Z_FORCE)))
        await session.flush()
        session.expunge_all()
        shown = {"name": "Deadpond", "age": None, "team_id": 1, "id": 1, "team": {**Z_FORCE, "id": 1}}
        assert (await client.get("/heroes/1")).json() == shown

    async def test_an_invalid_request_is_refused(self, client: httpx.AsyncClient) -> None:
        assert (await client.post("/heroes/", json={"name": "Deadpond"})).status_code == 422
