"""The JSON that a database makes of rows is what pydantic makes of them, to the byte."""

from collections.abc import Sequence

import pytest
from pydantic import TypeAdapter
from sqlalchemy import URL, Boolean, Column, DateTime, Enum, Float, Integer, MetaData, String, Table, insert
from sqlalchemy.types import TypeEngine
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.database import create_engine
from app.heroes.models import Hero, HeroPublic
from app.rows import as_lines

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
    engine = create_engine(url, {})
    rows = [{"name": name, "age": AGES[number % len(AGES)], "secret_name": "x"} for number, name in enumerate(names)]
    page = select(*PUBLIC).order_by(HEROES.c.id.desc()).limit(limit)
    async with AsyncSession(engine) as session:
        if rows:
            await session.exec(insert(HEROES), params=rows)
        lines = (await session.exec(as_lines(page))).one()
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


@pytest.mark.parametrize("kind", [Boolean(), DateTime(), Enum("a", "b", name="e"), Float()], ids=str)
def test_a_type_that_the_databases_write_each_in_its_own_way_is_refused(kind: TypeEngine[object]) -> None:
    table = Table("t", MetaData(), Column("id", Integer), Column("name", String), Column("odd", kind))
    as_lines(select(table.c.id, table.c.name))
    with pytest.raises(TypeError, match="leave it to the response model"):
        as_lines(select(table.c.id, table.c.odd))
