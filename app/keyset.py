"""Keyset pagination: each page of a list is read by an index from the position where the last one ended."""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cache
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, TypeAdapter
from sqlalchemy import (
    BigInteger,
    BinaryExpression,
    Column,
    ColumnElement,
    SelectBase,
    bindparam,
    func,
    tuple_,
    type_coerce,
    union_all,
)
from sqlalchemy.sql import operators
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from app.cursors import Position
from app.inputs import INT64
from app.json_lines import matches_model, select_json_lines
from app.sorting import StoredType, stored_type

MAX_LIMIT = 100
CHUNK = 1000  # rows
RANGE_OPERATORS = {operators.eq, operators.lt, operators.le, operators.gt, operators.ge}

Start = Literal["first", "offset", "value", "null"]  # what a page starts after: `_build_page` has the SQL of each


class Page(NamedTuple):
    """A page of a list: its rows as JSON, one on each line, and the position where it ends, if there are more."""

    lines: str
    end: Position | None


class KeysetPaginator:
    """Reads a table in pages, with statements that are built once for each sort and set of filters.

    A page's rows are JSON as the response model writes them. The database writes them itself where it does that in the
    same way (`json_lines`); otherwise they go through the model.
    """

    def __init__(
        self, model: type[BaseModel], columns: Sequence[Column[Any]], filters: Mapping[str, ColumnElement[bool]]
    ) -> None:
        """Describe a resource's lists.

        Args:
            model: the response model.
            columns: a column for each of its fields, in their order. One is `id`, the primary key. Each sort needs an
                index: its column, and then `id`.
            filters: conditions with a parameter, `column <operator> bindparam(name)`, by the parameter's name.
        """
        self.columns = {column.name: column for column in columns}
        self.filters = filters
        self._by_database = matches_model(columns, model)
        self._adapter = TypeAdapter(model)
        if "id" not in self.columns:
            raise TypeError("a list needs a column id")
        self._id = self.columns["id"]
        self._page = cache(self._build_page)
        self._count = cache(self._build_count)

    def sort_type(self, sort: str) -> StoredType:
        """Return the type of the sort column's values in a position.

        Raises:
            TypeError: the list can't be sorted by that column.
        """
        return stored_type(self._sort_column(sort))

    def accepts(self, position: Position, sort: str) -> bool:
        """Tell whether a position that a client sent can be one in this sort."""
        if position.value is None:
            fits = bool(self._sort_column(sort).nullable)
        else:
            fits = self.sort_type(sort).accepts(position.value)
        return fits and stored_type(self._id).accepts(position.id)

    async def read(
        self,
        session: AsyncSession,
        sort: str,
        filters: Mapping[str, Any],
        limit: int,
        after: Position | int = 0,
    ) -> Page:
        """Read a page, with one statement.

        Args:
            session: of either kind.
            sort: the name of a column, with a `-` for descending. NULLs come last in both directions.
            filters: values, by the names of the filters.
            limit: how many rows to read: at most `MAX_LIMIT`, or any number if the sort is `id`.
            after: the position that the page begins after, or the number of rows to skip.
        """
        # No filter begins with an underscore, because no field of a pydantic model does.
        parameters = {**filters, "_limit": limit + 1}  # one more row says whether there is a next page
        if isinstance(after, Position):
            start: Start = "null" if after.value is None else "value"
            parameters |= {"_offset": 0, "_after_value": after.value, "_after_id": after.id}
        else:
            start = "offset" if after else "first"
            parameters |= {"_offset": after, "_reach": min(after + limit + 1, INT64)}
        statement = self._page(sort, tuple(filters), start, session.get_bind().dialect.name)
        result = await session.exec(statement, params=parameters)
        if self._by_database:
            return self._cut(result.one() or "", sort, limit)
        rows = result.all()
        lines = "\n".join(self._dump(row) for row in rows[:limit])
        return Page(lines, Position(*rows[limit - 1][-2:]) if len(rows) > limit > 0 else None)

    async def count(self, session: AsyncSession, filters: Mapping[str, Any]) -> int:
        """Count the rows of a list."""
        return (await session.exec(self._count(tuple(filters)), params=filters)).one()

    async def iter_chunks(
        self, sessionmaker: Callable[[], AbstractAsyncContextManager[AsyncSession]], filters: Mapping[str, Any]
    ) -> AsyncIterator[str]:
        """Read all rows in the order of their ids, as JSON Lines, `CHUNK` rows at a time.

        Args:
            sessionmaker: opens a session for each chunk. Between two chunks none is open, so the reader may be slow.
            filters: values, by the names of the filters.
        """
        after: Position | int | None = 0
        while after is not None:
            async with sessionmaker() as session:
                page = await self.read(session, "id", filters, CHUNK, after)
            yield f"{page.lines}\n" if page.lines else ""
            after = page.end

    def _sort_column(self, sort: str) -> Column[Any]:
        name = sort.removeprefix("-")
        if name not in self.columns:
            raise TypeError(f"a list can't be sorted by {name}: it is none of its columns")
        return self.columns[name]

    def _cut(self, lines: str, sort: str, limit: int) -> Page:
        if lines.count("\n") < limit:
            return Page(lines, None)
        lines, _, _ = lines.rpartition("\n")  # the row behind the page
        if not limit:
            return Page(lines, None)
        values = json.loads(lines.rpartition("\n")[2])
        return Page(lines, Position(values[sort.removeprefix("-")], values["id"]))

    def _dump(self, row: Sequence[Any]) -> str:
        values = dict(zip(self.columns, row, strict=False))  # the position is behind them
        return self._adapter.dump_json(self._adapter.validate_python(values, by_name=True), by_alias=True).decode()

    def _build_page(self, sort: str, filters: tuple[str, ...], start: Start, dialect: str) -> SelectOfScalar[Any]:
        """Build the statement for a page.

        Here `sort` is `age`, which may be NULL, and there are no filters. By `start`, the page starts

        - "first": at the first row.

            SELECT * FROM (SELECT … WHERE age IS NOT NULL ORDER BY age, id LIMIT 101)
            UNION ALL SELECT * FROM (SELECT … WHERE age IS NULL ORDER BY age, id LIMIT 101) LIMIT :_limit

        - "offset": after a number of rows. The same, with LIMIT :_reach instead of 101, and OFFSET :_offset at the end.

        - "value": after a row with an age; on Postgres, and on SQLite.

            … WHERE (age, id) > (:_after_value, :_after_id) … UNION ALL … WHERE age IS NULL …
            … WHERE age = :_after_value AND id > :_after_id … UNION ALL … WHERE age > :_after_value …
              UNION ALL … WHERE age IS NULL …

        - "null": after a row without an age.

            SELECT … WHERE age IS NULL AND id > :_after_id ORDER BY age, id LIMIT :_limit

        Each part is a range of an index.
        """
        column, descending = self._sort_column(sort), sort.startswith("-")
        keys = [column] if column is self._id else [column, self._id]
        conditions = [self.filters[name] for name in filters]
        selected: list[ColumnElement[Any]] = [*self.columns.values()]
        if not self._by_database:
            selected += [
                type_coerce(column, self.sort_type(sort)).label("_value"),
                type_coerce(self._id, stored_type(self._id)).label("_id"),
            ]
        parts = [
            select(*selected)
            .where(*bounds, *conditions)  # in this order: SQLite begins at the first lower bound
            .order_by(*(key.desc() if descending else key for key in keys))
            for bounds in self._ranges(column, conditions, start, dialect, descending=descending)
        ]
        limit, offset = bindparam("_limit", type_=BigInteger), bindparam("_offset", type_=BigInteger)
        page: SelectBase = parts[0].limit(limit).offset(offset)
        if len(parts) > 1:
            # Each part is read in the order of an index, and no further than needed. The limit is a number where it
            # can be, because the database plans before it knows the parameters.
            reach = bindparam("_reach", type_=BigInteger) if start == "offset" else MAX_LIMIT + 1
            limited = [select(part.limit(reach).subquery()) for part in parts]
            page = union_all(*limited).limit(limit).offset(offset)
        return select_json_lines(page, dialect) if self._by_database else select(*page.subquery().columns)

    def _ranges(
        self,
        column: Column[Any],
        conditions: Sequence[ColumnElement[bool]],
        start: Start,
        dialect: str,
        *,
        descending: bool,
    ) -> list[list[ColumnElement[bool]]]:
        """Divide what a page may read into ranges of an index, in the order of the list."""
        value = bindparam("_after_value", type_=stored_type(column))
        row_id = bindparam("_after_id", type_=stored_type(self._id))
        after_id = self._id < row_id if descending else self._id > row_id
        if column is self._id:
            return [[]] if start in {"first", "offset"} else [[after_id]]
        if start == "null":
            return [[column.is_(None), after_id]]
        bounded = any(_bounds(condition, column) for condition in conditions)
        nulls: list[list[ColumnElement[bool]]] = [[column.is_(None)]] if column.nullable and not bounded else []
        if start != "value":
            return [[column.is_not(None)] if nulls else [], *nulls]
        # SQLite seeks by one column only, and so does Postgres where a filter bounds the column as well.
        if bounded or dialect == "sqlite":
            return [[column == value, after_id], [column < value if descending else column > value], *nulls]
        key, position = tuple_(column, self._id), tuple_(value, row_id)
        return [[key < position if descending else key > position], *nulls]

    def _build_count(self, filters: tuple[str, ...]) -> SelectOfScalar[int]:
        return select(func.count()).select_from(self._id.table).where(*(self.filters[name] for name in filters))


def _bounds(condition: ColumnElement[bool], column: Column[Any]) -> bool:
    if not isinstance(condition, BinaryExpression):
        return False
    return condition.left is column and condition.operator in RANGE_OPERATORS
