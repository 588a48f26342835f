"""The service: its resources, and what they are built on."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache, partial
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.trustedhost import TrustedHostMiddleware

from app import errors, health, log_config, openapi, security, swagger_ui
from app.capacity import name_process
from app.database import Database
from app.heroes import routes as heroes
from app.middleware import RequestMiddleware
from app.sessions import SessionMaker
from app.settings import Settings
from app.shutdown import handle_signals
from app.sqlite_file import SQLiteFile
from app.telemetry import FASTAPI_TELEMETRY, export_telemetry
from app.trailing_slash import answer_both_spellings
from app.urls import is_sqlite

# What a page of another origin may send and read, beyond what browsers allow it anyway.
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
REQUEST_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "traceparent", "X-Request-ID"),
)
RESPONSE_HEADERS = (
    *("ETag", "Link", "Location", "Retry-After", "traceresponse", "WWW-Authenticate", "X-Request-ID", "X-Total-Count"),
)

# New objects before the garbage collector looks at them; Python's default is 700. A request leaves no reference cycles,
# but while many wait, their objects are traversed again and again: a tenth of the CPU with 64 clients.
GC_THRESHOLD = 10_000

SERVICE = "heroes-api"  # its processes are known to Postgres by this name, their pid and their host


@cache
def load_script_directory() -> ScriptDirectory:
    """Load the revisions of this release, once: they do not change while it runs."""
    return ScriptDirectory.from_config(Config(Path(__file__).parents[1] / "alembic.ini"))


def open_sessionmaker(settings: Settings) -> SessionMaker:
    """Open the database for a block: in the lifespan of the service, and in a script beside it.

    A script is written like this:

        async with open_sessionmaker(Settings.from_environment()) as sessionmaker, sessionmaker() as session:
            session.add(Hero(name="Deadpond", secret_name="Dive Wilson"))
            await session.commit()
    """
    database = Database(
        settings.database_url,
        lock_timeout=settings.lock_timeout,
        statement_timeout=settings.statement_timeout,
        sqlite_synchronous=settings.sqlite_synchronous,
        application_name=name_process(SERVICE),
        pooler=settings.database_pooler,
        replica_url=settings.database_replica_url,
    )
    return SessionMaker(
        database,
        load_script_directory(),
        pool_size=settings.pool_size,
        queue_size=settings.queue_size,
        queue_timeout=settings.queue_timeout,
        max_lag=settings.replica_max_lag,
    )


def create_app(settings: Settings) -> FastAPI:
    """Create the service. It opens nothing until its lifespan starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log_config.install(settings.log_format, settings.log_level)
        gc.set_threshold(GC_THRESHOLD)
        async with AsyncExitStack() as stack:
            sessionmaker = await stack.enter_async_context(open_sessionmaker(settings))
            stack.enter_context(export_telemetry(SERVICE, sessionmaker.pools, sessionmaker.schema))
            await sessionmaker.schema.refresh()  # so that the log says at once what is missing
            if is_sqlite(settings.database_url):
                file = SQLiteFile(settings.database_url, sessionmaker.pools, sessionmaker.schema)
                await stack.enter_async_context(file.watch())
            else:
                await stack.enter_async_context(sessionmaker.watch_servers())
                if sessionmaker.schema.is_current and not settings.database_pooler:  # the start does not wait for it
                    capacity = asyncio.create_task(sessionmaker.check_capacity(SERVICE), name="capacity")
                    stack.push_async_callback(asyncio.wait, {capacity})
                    stack.callback(capacity.cancel)
            app.state.sessionmaker = sessionmaker
            with handle_signals(app, settings.shutdown_delay):
                yield
            del app.state.sessionmaker

    app = FastAPI(
        title="Heroes",
        version="0.1.0",
        lifespan=lifespan,
        openapi_url="/openapi.json" if settings.docs_enabled else None,
        docs_url=None,  # swagger_ui serves it
        redoc_url=None,
        generate_unique_id_function=openapi.name_operation,
        exception_handlers=errors.HANDLERS,
        telemetry=FASTAPI_TELEMETRY,
    )
    openapi.install(app)
    answer_both_spellings(app)
    if settings.allowed_hosts:
        hosts = [*settings.allowed_hosts, "127.0.0.1"]  # which the health check of the image names
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    cors = None
    if settings.cors_origins:
        cors = partial(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS,
            expose_headers=RESPONSE_HEADERS,
        )
    tokens = settings.tokens + settings.tokens_file
    app.add_middleware(RequestMiddleware, cors=cors, cache_control="private, no-cache" if tokens else "no-cache")
    authorization = security.install(app, tokens)
    refused = openapi.error_responses(401, 403) if tokens else {}
    app.include_router(heroes.router, dependencies=authorization, responses=refused)
    app.include_router(health.router)
    if settings.docs_enabled:
        swagger_ui.install(app)
    else:

        @app.get("/", include_in_schema=False)
        async def show_title() -> dict[str, str]:
            return {"title": app.title}

    return app


settings = Settings.from_environment()
if log_config.is_configured_by_uvicorn():  # which logs its first lines before the lifespan
    log_config.install(settings.log_format, settings.log_level)
app = create_app(settings)
