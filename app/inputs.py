"""Inputs: types of the values that clients send, with limits that hold on both databases."""

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError, PydanticKnownError

INT16 = 2**15 - 1
INT32 = 2**31 - 1
INT64 = 2**63 - 1

# Postgres can't store NUL. pydantic refuses text that UTF-8 can't encode.
Text = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]


def _json_integer(value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not int:  # isinstance would accept bool
        raise PydanticKnownError("int_type")
    return value


def _digits(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch("-?[0-9]+", value):
        raise PydanticKnownError("int_parsing")
    return value


def _utc_datetime(value: datetime) -> datetime:
    if value.utcoffset() is None:
        return value.replace(tzinfo=UTC)
    try:
        return value.astimezone(UTC)
    except OverflowError as error:  # the first or the last day, in a zone that is ahead or behind
        raise PydanticCustomError(
            "datetime_range", "Input should be a datetime of the years 1 to 9999 in UTC"
        ) from error


# For a datetime: converted to UTC. Without an offset, it is UTC already.
UTC_DATETIME = AfterValidator(_utc_datetime)

# For integers in a body, after the limits: 5 and 5.0, but not "5" or true.
JSON_INTEGER = BeforeValidator(_json_integer)

# For integers in a path or query, after the limits: digits, but not 1_0, +1 or 1.0, which pydantic accepts.
DIGITS = BeforeValidator(_digits)
