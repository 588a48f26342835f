"""The input types, apart from the resources that use them."""

from datetime import UTC, datetime
from typing import Annotated

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from app.inputs import DIGITS, JSON_INTEGER, UTC_DATETIME, Text

from_json: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=0, le=9), JSON_INTEGER])
from_path: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=-9, le=9), DIGITS])
text: TypeAdapter[str] = TypeAdapter(Text)
utc: TypeAdapter[datetime] = TypeAdapter(Annotated[datetime, UTC_DATETIME])


@pytest.mark.parametrize(("value", "read"), [(0, 0), (9, 9), (5.0, 5), (-0.0, 0)])
def test_a_json_number_without_a_fraction_is_an_integer(value: object, read: int) -> None:
    integer = from_json.validate_python(value)
    assert (integer, type(integer)) == (read, int)


@pytest.mark.parametrize(
    "value", ["5", True, None, 5.5, float("inf"), float("nan"), [], {}, b"5", -1, 10, 10.0], ids=repr
)
def test_other_values_are_not_json_integers(value: object) -> None:
    with pytest.raises(ValidationError):
        from_json.validate_python(value)


@pytest.mark.parametrize(("value", "read"), [("5", 5), ("-5", -5), ("005", 5), ("-0", 0), (7, 7)])
def test_a_string_of_digits_is_an_integer(value: object, read: int) -> None:
    assert from_path.validate_python(value) == read


@pytest.mark.parametrize(
    "value", ["", "+5", " 5", "5 ", "5\n", "1_0", "5.0", "0x5", "\u0665", "5e0", "10", "-10"], ids=repr
)
def test_other_strings_are_not_integers(value: object) -> None:
    with pytest.raises(ValidationError):
        from_path.validate_python(value)


@pytest.mark.parametrize("value", ["x", "x" * 255, "\N{ROCKET}" * 255, " ", "\n", "\x01\x7f"], ids=ascii)
def test_text_is_kept_unchanged(value: str) -> None:
    assert text.validate_python(value) == value


@pytest.mark.parametrize("value", ["", "x" * 256, "\0", "a\0", "\ud800", "a\udfff", 5, None], ids=ascii)
def test_a_value_that_a_database_can_not_store_is_not_text(value: object) -> None:
    with pytest.raises(ValidationError):
        text.validate_python(value)


@pytest.mark.parametrize("value", ["2026-01-01T12:00:00Z", "2026-01-01T14:00:00+02:00", "2026-01-01 12:00"])
def test_a_datetime_is_converted_to_utc_and_is_utc_without_an_offset(value: str) -> None:
    converted = utc.validate_python(value)
    assert (converted, converted.tzinfo) == (datetime(2026, 1, 1, 12, tzinfo=UTC), UTC)


@pytest.mark.parametrize("value", ["0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"])
def test_a_datetime_beyond_the_range_of_utc_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="years 1 to 9999"):
        utc.validate_python(value)


def test_the_json_schema_has_the_limits() -> None:
    assert from_json.json_schema() == {"type": "integer", "minimum": 0, "maximum": 9}
    assert from_path.json_schema() == {"type": "integer", "minimum": -9, "maximum": 9}
    assert text.json_schema() == {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[^\x00]*$"}
