"""Bodies: how JSON is read, the same on every version of Python."""

import json
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.errors import MalformedBody

MAX_BYTES = 1_000_000
MAX_DEPTH = 32


class JSONRoute(APIRoute):
    """A route whose handler gets its body from a `JSONRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Put the reading of the body before FastAPI's own handling."""
        handle = super().get_route_handler()

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
            value = DECODER.decode(body.decode(json.detect_encoding(body)))
            check_depth(value)
        except UnicodeDecodeError:
            raise MalformedBody("The body is not encoded as UTF-8.") from None
        except json.JSONDecodeError as error:
            raise MalformedBody(f"The body is not JSON from character {error.pos} on.") from None
        except ValueError:
            raise MalformedBody("The body has a number with too many digits.") from None
        except RecursionError:
            raise MalformedBody(f"The body is nested deeper than {MAX_DEPTH} levels.") from None
        return value


def refuse_constant(name: str) -> NoReturn:
    """Refuse what Python's JSON has and JSON has not: NaN, Infinity and -Infinity."""
    raise MalformedBody(f"The body is not JSON: {name} is no value there.")


DECODER = json.JSONDecoder(parse_constant=refuse_constant)


def check_depth(value: object) -> None:
    """Raise RecursionError, as the decoder does at a depth that each version of Python has for itself."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in children(parent)]
        if not level:
            return
    if any(isinstance(child, dict | list) for child in level):
        raise RecursionError


def children(value: object) -> Iterable[object]:
    """List the values directly in an object or array."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
