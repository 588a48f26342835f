"""A client for an app that runs in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI


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
