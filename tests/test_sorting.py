"""Sorting: which columns a list can be sorted by, and what is said of the others when the service is imported."""

from enum import Enum as PythonEnum
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    SmallInteger,
    String,
    Text,
    TypeDecorator,
    Uuid,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import TypeEngine
from sqlmodel import AutoString, UTCDateTime

from app.database import BigId, CodePoints
from app.sorting import stored_type


class Unordered(PythonEnum):
    HIGH = 1
    LOW = 2
    AVERAGE = 3


class Cents(TypeDecorator[Any]):
    impl = Integer
    cache_ok = True


@pytest.mark.parametrize(
    ("kind", "stored", "other"),
    [
        (String(), ["", "é"], [1, "\0", "\ud800"]),
        (Text(), ["x"], [1]),
        (AutoString(), ["x"], [1]),
        (CodePoints, ["x"], [1]),
        (SmallInteger(), [2**15 - 1, -(2**15)], [2**15, -(2**15) - 1, "1", True, 1.0]),
        (Integer(), [2**31 - 1, -(2**31)], [2**31, -(2**31) - 1, "1", True, 1.0]),
        (BigInteger(), [2**63 - 1, -(2**63)], [2**63, -(2**63) - 1, "1"]),
        (BigId, [2**63 - 1], ["1"]),
        (Cents(), [5], ["5"]),
        (Boolean(), [True, 0, 1], [2, "x"]),
        (Float(), [0.1, 1, float("inf")], ["x"]),
        (Numeric(15, 0), ["12.50", 0.1, 5], ["x", "NaN", "1e999999", "1e-999999"]),
        (Numeric(1, 0), ["5"], ["x"]),
        (Date(), ["2026-01-01"], ["2026-13-01", "x"]),
        (UTCDateTime(), ["2026-01-01 12:00:00.000001", "2026-01-01T12:00:00+02:00"], ["x", "9999-12-31T23:59-23:59"]),
        (DateTime(), ["2026-01-01 12:00:00"], ["2026-01-01T12:00:00Z", "x"]),
        (Uuid(), ["00000000000000000000000000000001", "00000000-0000-0000-0000-000000000001"], ["x"]),
        (Enum("a", "b", name="e"), ["a", "b"], ["c", 1]),
        (Enum(Unordered, native_enum=False), ["HIGH"], ["1", "high"]),
    ],
    ids=repr,
)
def test_a_cursor_has_values_of_its_columns_type(kind: TypeEngine[Any], stored: list[Any], other: list[Any]) -> None:
    type_ = stored_type(Column("x", kind))
    assert [value for value in stored if not type_.accepts(value)] == []
    assert [value for value in other if type_.accepts(value)] == []


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (JSON(), "has no order that both databases share"),
        (JSONB(), "has no order that both databases share"),
        (JSON().with_variant(JSONB(), "postgresql"), "has no order that both databases share"),
        (ARRAY(Integer), "has no order that both databases share"),
        (LargeBinary(), "has no order that both databases share"),
        (Interval(), "has no order that both databases share"),
        (Numeric(), "SQLite stores a Decimal as a float"),
        (Numeric(12), "SQLite stores a Decimal as a float"),
        (Numeric(None, 2), "SQLite stores a Decimal as a float"),
        (Numeric(16, 2), "SQLite stores a Decimal as a float"),
        (DateTime(timezone=True), "SQLite stores a datetime without its offset"),
        (Enum(Unordered), "Postgres sorts an Enum as it is declared, SQLite by name"),
    ],
    ids=repr,
)
def test_a_column_that_the_databases_sort_differently_is_refused(kind: TypeEngine[Any], reason: str) -> None:
    with pytest.raises(TypeError, match=rf"^a list can't be sorted by x: .*{reason}"):
        stored_type(Column("x", kind))
