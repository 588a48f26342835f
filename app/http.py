"""HTTP: what clients may expect of every path."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter


class Router(APIRouter):
    """A router that answers each path with and without the slash at its end, and redirects neither.

    A redirect costs a round trip, and its address would be built from the Host header, which the client chooses.
    """

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Register the path as it is written, and its other spelling behind it, out of the documentation's sight."""
        other_path = path.removesuffix("/") if path.endswith("/") else f"{path}/"
        super().add_api_route(path, endpoint, **options)
        super().add_api_route(other_path, endpoint, **options | {"include_in_schema": False})
