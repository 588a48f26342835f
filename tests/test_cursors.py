"""Cursors: opaque texts that lose nothing and that no client can make of another list."""

import base64
import json
from typing import Any

import pytest

from app.cursors import Position, Scalar, decode, encode, fingerprint

OWNER = fingerprint("-age", {"min_age": 2})


def forged(*parts: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        'é"\\\n\N{ROCKET}',
        0,
        2**63 - 1,
        -(2**63),
        0.1 + 0.2,
        5e-324,
        float("inf"),
        True,
        "2026-01-01 12:00:00.000001",
    ],
    ids=repr,
)
def test_a_position_comes_out_as_it_went_in(value: Scalar) -> None:
    position = Position(value, 7)
    assert decode(encode(position, OWNER), OWNER) == position


@pytest.mark.parametrize(
    ("cursor", "sort", "filters", "position"),
    [
        ("WyIxYzFjZjk3NTRlMjAiLDMyLDRd", "-age", {}, Position(32, 4)),
        ("WyJkYjI0ODBhYzM1MzkiLDMyLDRd", "-age", {"name": "twin", "min_age": 2, "max_age": 40}, Position(32, 4)),
        ("WyI3NjE5MzgxZTUzMjciLCLDqVwiXFxcbiIsNF0", "name", {}, Position('é"\\\n', 4)),
    ],
)
def test_clients_can_use_the_cursors_that_they_have(
    cursor: str, sort: str, filters: dict[str, Any], position: Position
) -> None:
    """These were made by the release before, and their format is kept."""
    assert encode(position, fingerprint(sort, filters)) == cursor
    assert decode(cursor, fingerprint(sort, filters)) == position


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "=",
        "x",
        "\N{ROCKET}",
        encode(Position(1, 2), OWNER)[:-3],
        encode(Position(1, 2), OWNER) + "x",
        "!!!!" + encode(Position(1, 2), OWNER),
        encode(Position(1, 2), fingerprint("age", {"min_age": 2})),
        encode(Position(1, 2), fingerprint("-age", {"min_age": 3})),
        forged(),
        forged(OWNER),
        forged(OWNER, 1),
        forged(OWNER, 1, 2, 3),
        forged([OWNER], 1, 2),
        forged(OWNER, [1], 2),
        forged(OWNER, 1, {}),
        forged(OWNER, 2**63, 2),
        forged(OWNER, 1, -(2**63) - 1),
        base64.urlsafe_b64encode(b"1").decode(),
        base64.urlsafe_b64encode(b"[" * 20_000).decode(),
        base64.urlsafe_b64encode(b"[1, 1, " + b"9" * 5000 + b"]").decode(),
    ],
)
def test_a_malformed_cursor_and_one_of_another_list_are_refused(cursor: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(cursor, OWNER)
