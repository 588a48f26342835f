"""Trailing slashes: a path with and without a slash at its end gets the same response, and neither redirects.

A redirect costs a round trip, and Starlette builds its address from the Host header, which the client chooses.
"""

from urllib.parse import quote

from fastapi import FastAPI, Request
from starlette.types import Receive, Scope, Send

CLIENT_PATH = "client_path"  # in the scope: the path as the client wrote it, where the route has the other spelling


def answer_both_spellings(app: FastAPI) -> None:
    """Let the app try the other spelling of a path that no route matches."""
    router = app.router
    router.redirect_slashes = False
    not_found = router.default

    async def try_other_spelling(scope: Scope, receive: Receive, send: Send) -> None:
        path = other_spelling(scope["path"])
        if scope["type"] == "http" and CLIENT_PATH not in scope and path is not None:
            scope[CLIENT_PATH], scope["path"] = scope["path"], path
            await router(scope, receive, send)
        else:
            await not_found(scope, receive, send)

    router.default = try_other_spelling


def other_spelling(path: str) -> str | None:
    """Add the slash at the end of a path, or remove it. None where that leaves no path."""
    if not path.endswith("/"):
        return f"{path}/"
    return path[:-1] if not path.endswith("//") and len(path) > 1 else None


def own_path(request: Request) -> str:
    """Return a request's path as the client wrote it, behind any root path; never with the Host header."""
    root, path = request.scope["root_path"], request.scope.get(CLIENT_PATH, request.scope["path"])
    if path.startswith(f"{root}/"):
        path = path.removeprefix(root)
    return quote(root.rstrip("/") + path)


def location(request: Request, number: int) -> str:
    """Return the path of a new item of the collection that the request was sent to."""
    return f"{own_path(request).rstrip('/')}/{number}"
