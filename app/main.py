"""The service: which resources it has, and what they live on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse

from app import errors, health, logs
from app.database import Database
from app.heroes import routes as heroes
from app.http import IdentifyRequest
from app.schema import Schema
from app.sessions import Sessions
from app.settings import Settings

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
    app.add_middleware(IdentifyRequest)
    for router in (heroes.router, health.router):
        app.router.routes += router.routes  # not include_router: `Router` says why

    @app.get("/", include_in_schema=False)
    async def show_documentation(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{request.scope['root_path']}/docs")

    return app


app = create_app(Settings.from_environment())
