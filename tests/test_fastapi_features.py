"""FastAPI's own features work with the sessions and the routers of this project."""

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Request,
    Response,
    WebSocket,
    WebSocketDisconnect,
)
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import EventSourceResponse
from fastapi.testclient import TestClient
from sqlalchemy import URL
from sqlmodel import func, select
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.testclient import WebSocketDenialResponse

from app import main
from app.database import build_engine
from app.heroes.models import Hero, HeroPublic
from app.main import create_app, open_sessionmaker
from app.pooled_session import ENDED
from app.sessions import (
    NOT_OPEN,
    ReadSessionDep,
    SessionDep,
    SessionMakerDep,
    get_autocommit_session,
    get_read_session,
    get_session,
    get_sessionmaker,
)
from app.settings import Settings
from tests.support.app_client import listening, running
from tests.support.databases import Databases
from tests.support.heroes import DEADPOND, RUSTY_MAN
from tests.support.processes import ROOT, run

# Every operation of heroes, in an order in which each succeeds on an empty database.
OPERATIONS: list[tuple[str, str, Any]] = [
    ("POST", "/heroes/", DEADPOND),
    ("POST", "/heroes/batch", [RUSTY_MAN]),
    ("GET", "/heroes/", None),
    ("GET", "/heroes/1", None),
    ("GET", "/heroes/export", None),
    ("PATCH", "/heroes/1", {"age": 30}),
    ("DELETE", "/heroes/1", None),
]

SessionOverride = Callable[[], AsyncIterator[AsyncSession]]

# A router as any other: what a developer adds to this service.
router = APIRouter(prefix="/sidekicks")


async def count_heroes(session: AsyncSession) -> int:
    return (await session.exec(select(func.count()).select_from(Hero))).one()


async def add_robin(session: AsyncSession) -> None:
    session.add(Hero(name="Robin", secret_name="Dick Grayson"))
    await session.commit()


@router.post("/")
async def create_sidekick(session: SessionDep) -> HeroPublic:
    robin = Hero(name="Robin", secret_name="Dick Grayson")
    session.add(robin)
    await session.commit()
    await session.refresh(robin)
    return HeroPublic.model_validate(robin)


async def robin_in_session(session: SessionDep) -> Hero:
    robin = Hero(name="Robin", secret_name="Dick Grayson")
    session.add(robin)
    await session.flush()
    return robin


@router.post("/shared")
async def finish_what_a_dependency_began(robin: Annotated[Hero, Depends(robin_in_session)], session: SessionDep) -> int:
    robin.age = 18
    await session.commit()
    return await count_heroes(session)


async def hero_read(session: ReadSessionDep) -> Hero:
    return await session.get_one(Hero, 1)


async def hero_read_to_be_written(session: SessionDep) -> Hero:
    return await session.get_one(Hero, 1)


@router.post("/birthday")
async def change_what_a_dependency_read(hero: Annotated[Hero, Depends(hero_read)], session: SessionDep) -> HeroPublic:
    hero.age = 66
    await session.commit()
    return HeroPublic.model_validate(hero)


@router.post("/birthday-first")
async def change_what_a_dependency_read_for_it(
    hero: Annotated[Hero, Depends(hero_read_to_be_written)], reading: ReadSessionDep, session: SessionDep
) -> HeroPublic:
    assert reading is session
    return await change_what_a_dependency_read(hero, session)


@router.post("/background")
async def create_in_background(tasks: BackgroundTasks, sessionmaker: SessionMakerDep) -> None:
    async def work() -> None:
        async with sessionmaker() as session:
            await add_robin(session)

    tasks.add_task(work)


@router.post("/background-with-ended-session")
async def use_the_session_in_background(tasks: BackgroundTasks, session: SessionDep) -> None:
    tasks.add_task(add_robin, session)


@router.websocket("/socket")
async def create_by_websocket(websocket: WebSocket, session: SessionDep) -> None:
    await websocket.accept()
    await websocket.receive_text()
    await add_robin(session)
    await websocket.send_json(await count_heroes(session))
    await websocket.close()


@router.websocket("/socket-with-sessions")
async def create_by_each_message(websocket: WebSocket, sessionmaker: SessionMakerDep) -> None:
    await websocket.accept()
    async for _ in websocket.iter_text():
        async with sessionmaker() as session:
            await add_robin(session)
            await websocket.send_json(await count_heroes(session))


@router.websocket("/socket-with-conflict")
async def create_twice_by_websocket(websocket: WebSocket, session: SessionDep) -> None:
    for _ in range(2):
        session.add(Hero(id=1, name="Robin", secret_name="Dick Grayson"))
        await session.flush()
        session.expunge_all()
    await websocket.accept()


async def read_all(session: AsyncSession) -> list[Hero]:
    return list((await session.exec(select(Hero).order_by("id"))).all())


@router.get("/events", response_class=EventSourceResponse)
async def stream_events(sessionmaker: SessionMakerDep) -> AsyncIterable[HeroPublic]:
    async with sessionmaker(read=True) as session:
        for hero in await read_all(session):
            yield HeroPublic.model_validate(hero)


@router.get("/lines")
async def stream_lines(sessionmaker: SessionMakerDep) -> AsyncIterable[HeroPublic]:
    async with sessionmaker(read=True) as session:
        for hero in await read_all(session):
            yield HeroPublic.model_validate(hero)


@router.get("/lines-with-ended-session")
async def stream_lines_with_the_session(session: SessionDep) -> AsyncIterable[HeroPublic]:
    for hero in await read_all(session):
        yield HeroPublic.model_validate(hero)


@router.get("/events-with-ended-session", response_class=EventSourceResponse)
async def stream_events_with_the_session(session: ReadSessionDep) -> AsyncIterable[HeroPublic]:
    for hero in await read_all(session):
        yield HeroPublic.model_validate(hero)


@router.get("/bytes-with-ended-session")
async def stream_bytes_with_the_session(session: SessionDep) -> StreamingResponse:
    async def names() -> AsyncIterator[str]:
        for hero in await read_all(session):
            yield hero.name

    return StreamingResponse(names())


@router.get("/broken")
async def fail() -> None:
    raise LookupError("a fault in this service")


@pytest.fixture
def extended(app: FastAPI) -> FastAPI:
    """The app with the router above."""
    app.include_router(router)
    return app


def run_operations(client: TestClient) -> list[int]:
    return [client.request(method, path, json=body).status_code for method, path, body in OPERATIONS]


class TestRouters:
    def test_a_session_works_in_any_router(self, extended: FastAPI) -> None:
        with TestClient(extended) as client:
            assert client.post("/sidekicks/").json()["id"] == 1
            assert client.get("/heroes/1").json()["name"] == "Robin"

    def test_a_router_takes_a_prefix_and_dependencies(self, app: FastAPI) -> None:
        app.include_router(router, prefix="/v2", dependencies=[Depends(require_key)])
        with TestClient(app) as client:
            assert client.post("/v2/sidekicks/").status_code == 401
            assert client.post("/v2/sidekicks/", headers=KEY).status_code == 200

    def test_a_dependency_and_its_handler_share_the_session(self, extended: FastAPI) -> None:
        with TestClient(extended) as client:
            assert client.post("/sidekicks/shared").json() == 1
            assert client.get("/heroes/1").json()["age"] == 18

    @pytest.mark.parametrize("path", ["/sidekicks/birthday", "/sidekicks/birthday-first"])
    def test_a_handler_saves_what_a_dependency_has_read(self, extended: FastAPI, path: str) -> None:
        with TestClient(extended) as client:
            client.post("/sidekicks/")
            assert client.post(path).json()["age"] == 66
            assert client.get("/heroes/1").json()["age"] == 66


KEY = {"X-Key": "a key"}


async def require_key(x_key: Annotated[str | None, Header()] = None) -> None:
    if x_key != KEY["X-Key"]:
        raise HTTPException(401)


class TestAppDependencies:
    @pytest.fixture
    def guarded(self, url: URL, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
        """The app as it is when `create_app` says `FastAPI(dependencies=[Depends(require_key)])`."""
        monkeypatch.setattr(main, "FastAPI", partial(FastAPI, dependencies=[Depends(require_key)]))
        return create_app(Settings(database_url=url))

    def test_they_guard_every_operation(self, guarded: FastAPI) -> None:
        with TestClient(guarded) as client:
            for method, path, body in OPERATIONS:
                for spelling in (path, path.rstrip("/")):
                    assert client.request(method, spelling, json=body).status_code == 401, (method, spelling)
            assert client.get("/heroes/", headers=KEY).json() == []

    def test_they_let_every_operation_pass_that_satisfies_them(self, guarded: FastAPI) -> None:
        with TestClient(guarded, headers=KEY) as client:
            assert run_operations(client) == [200] * len(OPERATIONS)


def check_links(client: TestClient | httpx.Client, prefix: str) -> None:
    """Create two heroes, and follow the paths that the responses show."""
    for hero in (DEADPOND, RUSTY_MAN):
        created = client.post("/heroes/", json=hero)
        assert created.headers["Location"] == f"{prefix}/heroes/{created.json()['id']}"
    link = client.get("/heroes/?limit=1").headers["Link"]
    assert link.startswith(f"<{prefix}/heroes/?limit=1&cursor=")
    assert client.get("/heroes?limit=1").headers["Link"].startswith(f"<{prefix}/heroes?limit=1&cursor=")


class TestMounts:
    @pytest.fixture
    def parent(self, app: FastAPI) -> FastAPI:
        """An app that the service is mounted under, whose lifespan runs the service's."""

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            async with app.router.lifespan_context(app):
                yield

        parent = FastAPI(lifespan=lifespan)
        parent.mount("/api", app)
        return parent

    def test_every_operation_works_under_another_app(self, parent: FastAPI) -> None:
        with TestClient(parent) as client:
            client.base_url = client.base_url.join("/api")
            assert run_operations(client) == [200] * len(OPERATIONS)

    def test_the_paths_in_responses_are_those_under_the_other_app(self, parent: FastAPI) -> None:
        with TestClient(parent) as client:
            client.base_url = client.base_url.join("/api")
            check_links(client, "/api")

    async def test_the_paths_in_responses_have_the_root_path_of_the_server(self, sqlite_url: URL) -> None:
        async with listening(create_app(Settings(database_url=sqlite_url)), root_path="/api") as port:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                await asyncio.to_thread(check_links, client, "/api")

    def test_a_sub_application_with_the_state_of_the_service_takes_its_sessions(self, app: FastAPI) -> None:
        sub_application = FastAPI()
        sub_application.include_router(router)
        sub_application.state = app.state
        app.mount("/more", sub_application)
        with TestClient(app) as client:
            assert client.post("/more/sidekicks/").json()["id"] == 1
            assert client.get("/heroes/1").json()["name"] == "Robin"

    def test_an_error_in_an_app_under_the_service_says_that_its_lifespan_did_not_run(self, app: FastAPI) -> None:
        other = FastAPI()
        other.mount("/api", app)
        with TestClient(other) as client, pytest.raises(RuntimeError, match="start this app's lifespan") as error:
            client.get("/api/heroes/")
        assert str(error.value) == NOT_OPEN


def test_an_app_without_its_lifespan_says_so(sqlite_url: URL) -> None:
    client = TestClient(create_app(Settings(database_url=sqlite_url)))
    for method, path, body in [*OPERATIONS, ("GET", "/readyz", None)]:
        with pytest.raises(RuntimeError) as error:
            client.request(method, path, json=body)
        assert str(error.value) == NOT_OPEN


class TestOverrides:
    """Sessions of the test's own, on another database than the app's."""

    @pytest.fixture
    def other_url(self, databases: Databases) -> Iterator[URL]:
        """Another database at head, without rows."""
        url = databases.migrated()
        yield url
        databases.drop(url)

    @pytest.fixture
    async def sessions(self, other_url: URL) -> AsyncIterator[SessionOverride]:
        """A dependency that yields a session of SQLModel's, in AUTOCOMMIT, on the other database."""
        engine = build_engine(other_url, {}, isolation_level="AUTOCOMMIT")

        async def override() -> AsyncIterator[AsyncSession]:
            async with AsyncSession(engine) as session:
                yield session

        yield override
        await engine.dispose()

    async def test_an_override_replaces_the_session_of_any_router(
        self, extended: FastAPI, sessions: SessionOverride
    ) -> None:
        extended.dependency_overrides[get_session] = sessions
        async with running(extended) as client:
            assert (await client.post("/sidekicks/")).json()["id"] == 1
            assert (await client.get("/heroes/1")).status_code == 404

    async def test_overrides_replace_the_session_of_every_operation_and_need_no_lifespan(
        self, app: FastAPI, sessions: SessionOverride
    ) -> None:
        app.dependency_overrides |= {get_autocommit_session: sessions, get_read_session: sessions}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://heroes.test") as client:
            for method, path, body in OPERATIONS:
                if path != "/heroes/export":  # it opens sessions of its own
                    assert (await client.request(method, path, json=body)).status_code == 200
            assert (await client.post("/heroes/", json=DEADPOND, headers={"Idempotency-Key": "1"})).status_code == 200
            assert len((await client.get("/heroes/")).json()) == 2
        async with running(app) as client:
            app.dependency_overrides.clear()
            assert (await client.get("/heroes/")).json() == []

    async def test_an_override_replaces_what_opens_sessions(self, app: FastAPI, other_url: URL) -> None:
        async with open_sessionmaker(Settings(database_url=other_url)) as sessionmaker, running(app) as client:
            async with sessionmaker() as session:
                await add_robin(session)
            app.dependency_overrides[get_sessionmaker] = lambda: sessionmaker
            assert json.loads((await client.get("/heroes/export")).text)["name"] == "Robin"


class TestTestClient:
    def test_every_operation_works(self, app: FastAPI) -> None:
        with TestClient(app) as client:
            assert run_operations(client) == [200] * len(OPERATIONS)

    def test_an_unexpected_error_is_raised_in_the_test(self, extended: FastAPI) -> None:
        with TestClient(extended) as client, pytest.raises(LookupError, match="a fault in this service"):
            client.get("/sidekicks/broken")

    def test_an_unexpected_error_is_500_if_the_test_asks_for_it(self, extended: FastAPI) -> None:
        with TestClient(extended, raise_server_exceptions=False) as client:
            response = client.get("/sidekicks/broken")
            assert (response.status_code, response.json()) == (500, {"detail": "An unexpected error."})


async def teapot(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": type(error).__name__}, 418)


def sync_teapot(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": type(error).__name__}, 418)


@pytest.mark.parametrize(
    ("kind", "handler"),
    [(Exception, teapot), (Exception, sync_teapot), (500, teapot), (LookupError, sync_teapot)],
    ids=["Exception", "Exception, sync", "500", "its class, sync"],
)
async def test_a_registered_exception_handler_is_called(
    sqlite_url: URL, kind: type[Exception] | int, handler: Callable[..., Any]
) -> None:
    app = create_app(Settings(database_url=sqlite_url))
    app.include_router(router)
    app.exception_handler(kind)(handler)
    async with running(app) as client:
        response = await client.get("/sidekicks/broken")
        assert (response.status_code, response.json()) == (418, {"detail": "LookupError"})


class TestSessionsBesideTheRequest:
    def test_a_background_task_opens_its_own(self, extended: FastAPI) -> None:
        with TestClient(extended) as client:
            assert client.post("/sidekicks/background").status_code == 200
            assert client.get("/heroes/1").json()["name"] == "Robin"

    def test_a_websocket_takes_one_for_its_whole_length(self, extended: FastAPI) -> None:
        with TestClient(extended) as client:
            with client.websocket_connect("/sidekicks/socket") as websocket:
                websocket.send_text("create")
                assert websocket.receive_json() == 1
                with pytest.raises(WebSocketDisconnect):
                    websocket.receive_text()
            assert client.get("/heroes/1").json()["name"] == "Robin"

    def test_a_websocket_opens_one_for_each_message(self, extended: FastAPI) -> None:
        with TestClient(extended) as client:
            with client.websocket_connect("/sidekicks/socket-with-sessions") as websocket:
                for number in (1, 2, 3):
                    websocket.send_text("create")
                    assert websocket.receive_json() == number
            assert len(client.get("/heroes/").json()) == 3

    def test_an_error_before_a_websocket_is_accepted_is_answered_as_that_of_a_request(self, extended: FastAPI) -> None:
        with TestClient(extended) as client:
            with pytest.raises(WebSocketDenialResponse) as denied:
                client.websocket_connect("/sidekicks/socket-with-conflict").__enter__()
            assert denied.value.status_code == 409
            assert client.get("/heroes/").json() == []

    def test_server_sent_events_open_their_own(self, extended: FastAPI) -> None:
        with TestClient(extended) as client:
            client.post("/sidekicks/")
            response = client.get("/sidekicks/events")
            assert response.headers["Content-Type"].startswith("text/event-stream")
            assert json.loads(response.text.removeprefix("data: "))["name"] == "Robin"

    def test_json_lines_open_their_own(self, extended: FastAPI) -> None:
        with TestClient(extended) as client:
            client.post("/sidekicks/")
            response = client.get("/sidekicks/lines")
            assert response.headers["Content-Type"] == "application/jsonl"
            assert json.loads(response.text)["name"] == "Robin"

    def test_a_startup_job_opens_its_own(self, app: FastAPI) -> None:
        @asynccontextmanager
        async def seed(app: FastAPI) -> AsyncIterator[None]:
            async with app.state.sessionmaker() as session:
                await add_robin(session)
            yield

        app.include_router(APIRouter(lifespan=seed))
        with TestClient(app) as client:
            assert client.get("/heroes/1").json()["name"] == "Robin"

    @pytest.mark.slow
    def test_a_script_opens_its_own(self, url: URL, app: FastAPI, tmp_path: Path) -> None:
        (tmp_path / "script.py").write_text(SCRIPT)
        changes = {"DATABASE_URL": url.render_as_string(hide_password=False), "PYTHONPATH": str(ROOT)}
        result = run("python", "-W", "error", "script.py", cwd=tmp_path, changes=changes)
        assert (result.returncode, result.stdout) == (0, "1\n")
        with TestClient(app) as client:
            assert client.get("/heroes/1").json()["name"] == "Deadpond"

    def test_the_documentation_shows_such_a_script(self) -> None:
        shown = " ".join((open_sessionmaker.__doc__ or "").split())
        assert " ".join("".join(SCRIPT.partition("async with")[1:]).partition("        print")[0].split()) in shown


SCRIPT = """
import asyncio
from app.heroes.models import Hero
from app.main import open_sessionmaker
from app.settings import Settings

async def main():
    async with open_sessionmaker(Settings.from_environment()) as sessionmaker, sessionmaker() as session:
        session.add(Hero(name="Deadpond", secret_name="Dive Wilson"))
        await session.commit()
        print((await session.get_one(Hero, 1)).id)

asyncio.run(main())
"""


def messages(error: BaseException | None) -> set[str]:
    """Collect the messages of an error, of those in its group, and of its causes: a stream's error is wrapped."""
    if error is None:
        return set()
    grouped = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return {str(error)}.union(*map(messages, (*grouped, error.__cause__)))


def test_a_stream_that_uses_the_session_of_its_request_is_told_to_open_one(extended: FastAPI) -> None:
    with TestClient(extended) as client:
        for kind in ("lines", "events", "bytes"):
            with pytest.raises((ExceptionGroup, RuntimeError)) as error:
                client.get(f"/sidekicks/{kind}-with-ended-session")
            assert ENDED in messages(error.value), kind


def test_a_background_task_that_uses_the_session_of_its_request_is_told_to_open_one(extended: FastAPI) -> None:
    with TestClient(extended) as client:
        with pytest.raises(RuntimeError) as error:
            client.post("/sidekicks/background-with-ended-session")
        assert ENDED in messages(error.value)
        assert client.get("/heroes/").json() == []


def test_a_body_that_is_too_large_is_413_with_an_id_and_no_error_in_the_log(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    with TestClient(app) as client:
        for path, size, status in [
            ("/heroes/", 1_000_001, 413),
            ("/heroes", 1_000_001, 413),
            ("/heroes/batch", 1_000_001, 422),
            ("/heroes/batch", 8_000_001, 413),
        ]:
            response = client.post(path, content=b"0" * size, headers={"X-Request-ID": "mine"})
            assert (response.status_code, response.headers["X-Request-ID"]) == (status, "mine"), (path, size)
    assert "ERROR" not in caplog.text
