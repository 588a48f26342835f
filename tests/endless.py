"""A service whose answers have no end, as the export of a large table looks to a proxy."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

LINE = b'{"name":"Deadpond","age":null,"id":1}\n'
app = FastAPI()
app.state.sent = 0


@app.get("/one")
async def send_one_line_and_wait() -> StreamingResponse:
    async def lines() -> AsyncIterator[bytes]:
        yield LINE
        await asyncio.Event().wait()

    return StreamingResponse(lines())


@app.get("/many")
async def send_lines_as_fast_as_they_are_taken() -> StreamingResponse:
    async def lines() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0)  # uvicorn does not, when the client has gone
            yield LINE * 1000
            app.state.sent += 1000 * len(LINE)

    return StreamingResponse(lines())


@app.get("/sent")
async def tell_how_many_bytes_were_sent() -> int:
    return int(app.state.sent)
