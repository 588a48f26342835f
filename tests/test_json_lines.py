"""The JSON that a database makes of rows is what pydantic makes of them, to the byte."""

from collections.abc import Sequence
from typing import Annotated, Self

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    PlainSerializer,
    TypeAdapter,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic import Field as Value
from sqlalchemy import (
    JSON,
    URL,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Enum,
    Float,
    Integer,
    Text,
    Uuid,
    insert,
)
from sqlalchemy.types import TypeEngine
from sqlmodel import AutoString, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.database import build_engine
from app.heroes.models import Hero, HeroPublic
from app.json_lines import matches_model, select_json_lines

HEROES = Hero.metadata.tables["hero"]
PUBLIC = [HEROES.c[field] for field in HeroPublic.model_fields]
ASCII = "".join(map(chr, range(1, 128)))
NAMES = [
    ASCII,
    '"',
    "\\",
    "\\u0000",
    "</script>",
    "é",
    "\u2028\u2029",
    "😀",
    "\x7f\x80\x9f\xad\ufeff\uffff",
    "null",
    "",
]
AGES = [None, 0, 1, 2**31 - 1, -1]


async def listed(url: URL, names: Sequence[str], limit: int) -> tuple[str, bytes]:
    """The heroes of these names, as the database writes them and as pydantic does."""
    engine = build_engine(url, {})
    rows = [{"name": name, "age": AGES[number % len(AGES)], "secret_name": "x"} for number, name in enumerate(names)]
    page = select(*PUBLIC).order_by(HEROES.c.id.desc()).limit(limit)
    async with AsyncSession(engine) as session:
        if rows:
            await session.exec(insert(HEROES), params=rows)
        lines = (await session.exec(select_json_lines(page, engine.dialect.name))).one()
        heroes = TypeAdapter(list[HeroPublic]).validate_python((await session.exec(page)).all(), from_attributes=True)
    await engine.dispose()
    text = f"[{(lines or '').replace(chr(10), ',')}]"
    return text, TypeAdapter(list[HeroPublic]).dump_json(heroes)


async def test_it_is_what_pydantic_writes_in_the_order_of_the_rows(url: URL) -> None:
    by_database, by_pydantic = await listed(url, NAMES, 100)
    assert by_database.encode() == by_pydantic
    assert by_pydantic.count(b'"id"') == len(NAMES)


async def test_it_has_the_rows_of_the_page_alone(url: URL) -> None:
    by_database, by_pydantic = await listed(url, NAMES, 3)
    assert by_database.encode() == by_pydantic
    assert by_pydantic.count(b'"id"') == 3


async def test_no_rows_are_an_empty_array(url: URL) -> None:
    assert await listed(url, [], 100) == ("[]", b"[]")
    assert await listed(url, NAMES, 0) == ("[]", b"[]")


class Plain(SQLModel):
    id: int
    name: str | None = None


class Constrained(Plain):
    name: Annotated[str | None, Value(max_length=5)] = None


class Described(Plain):
    name: str | None = Value(default=None, description="A name.", examples=["x"])


class Aliased(Plain):
    name: str | None = Value(default=None, serialization_alias="title")


class Validated(Plain):
    @field_validator("name")
    @classmethod
    def upper(cls, name: str | None) -> str | None:
        return name and name.upper()


class FieldSerialized(Plain):
    @field_serializer("name")
    def mask(self, name: str | None) -> str:
        return "*" * len(name or "")


class TypeSerialized(Plain):
    name: Annotated[str, PlainSerializer(str.upper)] = ""


class ModelSerialized(Plain):
    @model_serializer
    def as_list(self) -> list[int]:
        return [self.id]


class Computed(Plain):
    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated property
    @property
    def twice(self) -> int:
        return self.id * 2


class Configured(BaseModel):
    model_config = ConfigDict(str_to_upper=True)

    id: int
    name: str | None


class Reordered(SQLModel):
    name: str | None
    id: int


class Retyped(SQLModel):
    id: int
    name: int


class Flagged(SQLModel):
    id: int
    name: bool


class Checked(Plain):
    @model_validator(mode="after")
    def check(self) -> Self:
        return self


@pytest.mark.parametrize("model", [Plain, Described])
def test_the_database_writes_text_and_integers_of_a_plain_model(model: type[BaseModel]) -> None:
    assert matches_model([Column("id", Integer), Column("name", AutoString)], model)
    assert matches_model([Column("id", BigInteger), Column("name", Text)], model)


@pytest.mark.parametrize(
    "model",
    [
        Constrained,
        Aliased,
        Validated,
        FieldSerialized,
        TypeSerialized,
        ModelSerialized,
        Computed,
        Configured,
        Reordered,
        Retyped,
        Flagged,
        Checked,
    ],
)
def test_a_model_that_writes_in_its_own_way_is_left_to_pydantic(model: type[BaseModel]) -> None:
    assert not matches_model([Column("id", Integer), Column("name", AutoString)], model)


@pytest.mark.parametrize("kind", [Boolean(), DateTime(), Enum("a", "b", name="e"), Float(), JSON(), Uuid()], ids=repr)
def test_a_column_of_another_type_is_left_to_pydantic(kind: TypeEngine[object]) -> None:
    assert not matches_model([Column("id", Integer), Column("name", kind)], Plain)
