"""Sorting: the columns that a list can be sorted by, and how a cursor carries their values."""

from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, NaiveDatetime, TypeAdapter, ValidationError
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Enum,
    Float,
    Integer,
    Interval,
    Numeric,
    SmallInteger,
    String,
    TypeDecorator,
    Uuid,
)
from sqlalchemy.types import TypeEngine, UserDefinedType

from app.cursors import Scalar
from app.inputs import INT16, INT32, INT64, UTC_DATETIME

FLOAT_DIGITS = 15  # a float keeps that many decimal digits


def integer(limit: int) -> Any:
    """Describe the integers that a column of that size stores."""
    return Annotated[int, Field(strict=True, ge=-limit - 1, le=limit)]


TYPES: list[tuple[type[TypeEngine[Any]], Any]] = [  # a subclass before its base
    (String, Annotated[str, Field(pattern=r"^[^\x00]*$")]),
    (BigInteger, integer(INT64)),
    (SmallInteger, integer(INT16)),
    (Integer, integer(INT32)),
    (Boolean, bool),
    (Float, float),
    (Numeric, Annotated[Decimal, Field(max_digits=40)]),  # asyncpg fails on exponents that are larger
    (Date, date),
    (Uuid, UUID),
]


class StoredType(UserDefinedType[Any]):
    """A sort column's values as scalars of JSON, which are read from one statement and bound to the next.

    On SQLite these are the values as stored, because SQLite compares them as stored, and different ones can be the
    same value in Python: CURRENT_TIMESTAMP writes a datetime without the microseconds that SQLAlchemy writes, and a
    float has more digits than the Decimal that is read from it.
    """

    cache_ok = True

    def __init__(self, adapter: TypeAdapter[Any]) -> None:
        """Take the adapter that validates the values, and that converts them for asyncpg."""
        self.adapter = adapter

    def accepts(self, value: Scalar) -> bool:
        """Tell whether a value that a client sent can be bound."""
        try:
            self.adapter.validate_python(value)
        except ValidationError:
            return False
        return True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        """Bind a scalar."""
        return None if dialect.name == "sqlite" else self.adapter.validate_python

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Scalar]:
        """Read a scalar."""
        del dialect, coltype
        return to_scalar


def to_scalar(value: Any) -> Scalar:
    """Convert a value to a scalar of JSON, from which pydantic reads the same value."""
    return value if isinstance(value, str | int | float | None) else str(value)


@cache
def stored_type(column: Column[Any]) -> StoredType:
    """Find how a sort column's values are read and bound.

    Raises:
        TypeError: the list can't be sorted by the column.
    """
    kind: Any = column.type
    if isinstance(kind, TypeDecorator) and not isinstance(kind, Interval):  # an Interval is native on Postgres
        kind = kind.impl_instance
    return StoredType(TypeAdapter(_python_type(column, kind)))


def _python_type(column: Column[Any], kind: TypeEngine[Any]) -> Any:
    if isinstance(kind, Enum):
        if kind.native_enum and kind.enums != sorted(kind.enums):
            raise TypeError(
                f"a list can't be sorted by {column}: Postgres sorts an Enum as it is declared, SQLite by name. Declare"
                " its members in the order of their names, or don't sort by it"
            )
        return Literal[tuple(kind.enums)]
    if isinstance(kind, DateTime):
        if kind.timezone and kind is column.type:
            raise TypeError(
                f"a list can't be sorted by {column}: SQLite stores a datetime without its offset. Declare the"
                " column with SQLModel's UTCDateTime"
            )
        return Annotated[datetime, UTC_DATETIME] if kind.timezone else NaiveDatetime
    if isinstance(kind, Numeric) and (not 0 < (kind.precision or 0) <= FLOAT_DIGITS or kind.scale is None):
        raise TypeError(
            f"a list can't be sorted by {column}: SQLite stores a Decimal as a float, which keeps {FLOAT_DIGITS}"
            f" digits. Declare the column with max_digits, at most {FLOAT_DIGITS}, and decimal_places"
        )
    for base, python_type in TYPES:
        if isinstance(kind, base):
            return python_type
    raise TypeError(f"a list can't be sorted by {column}: {kind!r} has no order that both databases share")
