"""A client for an app that runs in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI

from app.protocol import StrictHTTPProtocol
from tests.support.processes import free_port


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Run an app's lifespan, and yield a client for it.

    What the start leaves to a task is waited for, so that no test counts its statement.
    """
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://heroes.test") as client,
    ):
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "capacity"))
        yield client


@asynccontextmanager
async def listening(app: FastAPI, *, root_path: str = "") -> AsyncIterator[int]:
    """Serve the app on a port with the protocol of `make run`, in this process, so that its log can be read."""
    port = free_port()
    config = uvicorn.Config(app, port=port, http=StrictHTTPProtocol, ws="none", log_config=None, root_path=root_path)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done(), "the server did not start"
        await asyncio.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        await serving
