"""Bodies: how JSON is read, the same on every version of Python."""

import json
import re
from collections.abc import Callable, Coroutine
from itertools import accumulate
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.errors import MalformedBody

MAX_BYTES = 1_000_000
MAX_DEPTH = 32


class JSONRoute(APIRoute):
    """A route whose handler gets its body, if it takes one, from a `JSONRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Put the reading of the body before FastAPI's own handling."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_json(request: Request) -> Response:
            return await handle(JSONRequest(request.scope, request.receive))

        return handle_json


class JSONRequest(Request):
    """A request whose body is JSON, or is refused with the reason."""

    async def json(self) -> Any:
        """Read the body.

        Raises:
            MalformedBody: it is no text, no JSON, or nested deeper than `MAX_DEPTH`.
        """
        body = await self.body()
        try:
            text = body.decode(json.detect_encoding(body))
        except UnicodeDecodeError:
            raise MalformedBody("The body is not encoded as UTF-8.") from None
        if is_too_deep(text):  # before it is decoded: each version of Python has a depth of its own that it gives up at
            raise MalformedBody(f"The body is nested deeper than {MAX_DEPTH} levels.")
        try:
            return DECODER.decode(text)
        except json.JSONDecodeError:
            raise MalformedBody("The body is not JSON.") from None
        except ValueError:
            raise MalformedBody("The body has an integer with too many digits.") from None


def refuse_constant(name: str) -> NoReturn:
    """Refuse what Python's JSON has and JSON has not: NaN, Infinity and -Infinity."""
    raise MalformedBody(f"The body is not JSON: {name} is no value there.")


DECODER = json.JSONDecoder(parse_constant=refuse_constant)
STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
NESTING = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}
NO_BRACKETS = bytes(set(range(256)) - NESTING.keys())


def is_too_deep(text: str) -> bool:
    """Tell whether arrays and objects are nested deeper than `MAX_DEPTH`, in what is JSON or may not be."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    brackets = STRING.sub("", text).encode().translate(None, NO_BRACKETS)
    return max(accumulate(map(NESTING.__getitem__, brackets)), default=0) > MAX_DEPTH
