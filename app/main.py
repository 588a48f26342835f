"""The service: which resources it has, and what they live on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import RedirectResponse

from app import errors, health, logs
from app.database import Database
from app.heroes import routes as heroes
from app.http import AnswerHead, IdentifyRequest
from app.schema import Schema
from app.sessions import Sessions
from app.settings import Settings

# What a page of another origin may send and read, beyond what browsers let it anyway.
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST")
REQUEST_HEADERS = ("Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "X-Request-ID")
RESPONSE_HEADERS = ("ETag", "Link", "Location", "Retry-After", "X-Request-ID", "X-Total-Count")

ALEMBIC_INI = Path(__file__).parents[1] / "alembic.ini"


def create_app(settings: Settings) -> FastAPI:
    """Put the service together. It opens nothing until its lifespan starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        logs.install()
        database = Database(
            settings.database_url,
            lock_timeout=settings.lock_timeout,
            statement_timeout=settings.statement_timeout,
            sqlite_synchronous=settings.sqlite_synchronous,
        )
        script = ScriptDirectory.from_config(Config(ALEMBIC_INI))
        async with (
            database,
            Schema(database.probes, script) as schema,
            Sessions(
                database,
                schema,
                pool_size=settings.pool_size,
                queue_size=settings.queue_size,
                queue_timeout=settings.queue_timeout,
            ) as sessions,
        ):
            await schema.look()  # so that the log tells at once what is missing
            app.state.database = database
            app.state.schema = schema
            app.state.sessions = sessions
            yield

    app = FastAPI(
        title="Heroes",
        version="0.1.0",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    errors.install(app)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS,
            expose_headers=RESPONSE_HEADERS,
        )
    app.add_middleware(AnswerHead)
    app.add_middleware(IdentifyRequest)
    for router in (heroes.router, health.router):
        app.router.routes += router.routes  # not include_router: `Router` says why

    app.router.add_route("/", show_documentation, include_in_schema=False)
    return app


async def show_documentation(request: Request) -> RedirectResponse:
    """Lead from / to the documentation."""
    return RedirectResponse(f"{request.scope['root_path']}/docs")


app = create_app(Settings.from_environment())
