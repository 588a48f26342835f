"""Cursors: a position in a list as an opaque text, bound to the list that it is a position in."""

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from app.inputs import INT64

Scalar = str | int | float | None


class Position(NamedTuple):
    """Where a page ends: the sort column of its last row, and the row's id. Both are scalars of JSON."""

    value: Scalar
    id: Scalar


def fingerprint(sort: str, filters: Mapping[str, Any]) -> str:
    """Identify a list by its sort and filters."""
    return hashlib.blake2b(repr((sort, dict(filters))).encode(), digest_size=6).hexdigest()


def encode(position: Position, owner: str) -> str:
    """Encode a position in the list with the fingerprint `owner`."""
    text = json.dumps([owner, *position], separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(cursor: str, owner: str) -> Position:
    """Decode a cursor of the list with the fingerprint `owner`.

    Raises:
        ValueError: it is malformed, or belongs to another list.
    """
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        found, value, row_id = json.loads(text)
    except (TypeError, RecursionError) as error:
        raise ValueError("malformed") from error
    if found != owner:
        raise ValueError("the cursor belongs to another list")
    for scalar in (value, row_id):
        if isinstance(scalar, list | dict) or (isinstance(scalar, int) and not -INT64 - 1 <= scalar <= INT64):
            raise ValueError("no database stores this value")
    return Position(value, row_id)
