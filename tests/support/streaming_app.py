"""An app whose responses never end, as the export of a large table looks to a proxy."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

LINE = b'{"name":"Deadpond","age":null,"id":1}\n'
app = FastAPI()
app.state.sent = 0


@app.get("/one")
async def stream_one_line_and_stall() -> StreamingResponse:
    async def lines() -> AsyncIterator[bytes]:
        yield LINE
        await asyncio.Event().wait()

    return StreamingResponse(lines())


@app.get("/many")
async def stream_lines_without_end() -> StreamingResponse:
    async def lines() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0)  # uvicorn does not yield to the event loop once the client has disconnected
            yield LINE * 1000
            app.state.sent += 1000 * len(LINE)

    return StreamingResponse(lines())


@app.get("/sent")
async def count_sent_bytes() -> int:
    return int(app.state.sent)
