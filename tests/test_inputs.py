"""The kinds of values that clients send, apart from the resources that use them."""

from typing import Annotated

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from app.inputs import DIGITS, JSON_INTEGER, Text

from_json: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=0, le=9), JSON_INTEGER])
from_path: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=-9, le=9), DIGITS])
text: TypeAdapter[str] = TypeAdapter(Text)


@pytest.mark.parametrize(("value", "read"), [(0, 0), (9, 9), (5.0, 5), (-0.0, 0)])
def test_an_integer_of_json_is_one_whatever_its_spelling(value: object, read: int) -> None:
    integer = from_json.validate_python(value)
    assert (integer, type(integer)) == (read, int)


@pytest.mark.parametrize(
    "value", ["5", True, None, 5.5, float("inf"), float("nan"), [], {}, b"5", -1, 10, 10.0], ids=repr
)
def test_nothing_else_is_an_integer_of_json(value: object) -> None:
    with pytest.raises(ValidationError):
        from_json.validate_python(value)


@pytest.mark.parametrize(("value", "read"), [("5", 5), ("-5", -5), ("005", 5), ("-0", 0), (7, 7)])
def test_digits_are_an_integer(value: object, read: int) -> None:
    assert from_path.validate_python(value) == read


@pytest.mark.parametrize(
    "value", ["", "+5", " 5", "5 ", "5\n", "1_0", "5.0", "0x5", "\u0665", "5e0", "10", "-10"], ids=repr
)
def test_nothing_else_is_digits(value: object) -> None:
    with pytest.raises(ValidationError):
        from_path.validate_python(value)


@pytest.mark.parametrize("value", ["x", "x" * 255, "\N{SUPERHERO}" * 255, " ", "\n", "\x01\x7f"], ids=ascii)
def test_text_is_kept_as_it_is(value: str) -> None:
    assert text.validate_python(value) == value


@pytest.mark.parametrize("value", ["", "x" * 256, "\0", "a\0", "\ud800", "a\udfff", 5, None], ids=ascii)
def test_what_a_database_can_not_store_is_no_text(value: object) -> None:
    with pytest.raises(ValidationError):
        text.validate_python(value)


def test_the_limits_are_in_the_documentation() -> None:
    assert from_json.json_schema() == {"type": "integer", "minimum": 0, "maximum": 9}
    assert from_path.json_schema() == {"type": "integer", "minimum": -9, "maximum": 9}
    assert text.json_schema() == {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[^\x00]*$"}
