"""Lists: all rows of one, page by page, and the order that they must have."""

from enum import Enum
from typing import Any

import httpx

Rows = list[dict[str, Any]]


async def walk(client: httpx.AsyncClient, path: str) -> Rows:
    """Follow the links from a page to the last one, and return the rows of all."""
    rows: Rows = []
    visited: set[str] = set()
    while path:
        assert path not in visited, "the walk does not end"
        visited.add(path)
        page = await client.get(path)
        assert page.status_code == 200, page.text
        rows += page.json()
        path = page.links.get("next", {}).get("url", "")
    return rows


def in_order(rows: Rows, sort: str) -> Rows:
    """Sort rows by the rules of a list, without a database: ties are broken by the id, and missing values come last."""
    name, descending = sort.removeprefix("-"), sort.startswith("-")

    def key(row: dict[str, Any]) -> tuple[Any, int]:
        value = row[name]
        return value.name if isinstance(value, Enum) else value, row["id"]

    present = sorted((row for row in rows if row[name] is not None), key=key, reverse=descending)
    missing = sorted((row for row in rows if row[name] is None), key=lambda row: row["id"], reverse=descending)
    return present + missing


def ids_of(rows: Rows) -> list[int]:
    return [row["id"] for row in rows]


async def count(client: httpx.AsyncClient, filters: str = "", path: str = "/heroes/") -> int:
    """Count the rows of a list exactly."""
    return int((await client.get(f"{path}?{filters}&count=exact&limit=0")).headers["X-Total-Count"])
