"""Inputs: the kinds of values that clients send, with the limits that both databases share."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticKnownError

INT32 = 2**31 - 1
INT64 = 2**63 - 1

# Postgres stores no NUL. That it must be encodable as UTF-8, pydantic sees to.
Text = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]


def _json_integer(value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not int:  # not bool either
        raise PydanticKnownError("int_type")
    return value


def _digits(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch("-?[0-9]+", value):
        raise PydanticKnownError("int_parsing")
    return value


# Behind an int's limits: an integer of JSON, so 5 and 5.0, but neither "5" nor true.
JSON_INTEGER = BeforeValidator(_json_integer)

# Behind an int's limits: an integer in a path or query, so digits, and not what Python reads too: 1_0, +1, 1.0.
DIGITS = BeforeValidator(_digits)


def at_most(length: int) -> BeforeValidator:
    """Refuse a list that is longer, before a look at what is in it: a hostile one would take long."""

    def check(value: object) -> object:
        if isinstance(value, list) and len(value) > length:
            limits = {"field_type": "List", "max_length": length, "actual_length": len(value)}
            raise PydanticKnownError("too_long", limits)
        return value

    return BeforeValidator(check)
