"""Pagination: lists in pages that neither skip nor repeat a row while others write.

A list has a total order: by a column, and then by id. So its next page begins behind the last row of this one, wherever
that is by then, and a cursor says where. Each page is read by an index from there on, however far in it is.
"""

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cache, partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self
from urllib.parse import urlencode

from fastapi import Request
from pydantic import BaseModel, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError
from sqlalchemy import BigInteger, Column, ColumnElement, Integer, bindparam, func, tuple_, union_all
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from app.http import own_path
from app.inputs import DIGITS, INT64
from app.pool import SessionPool
from app.rows import as_lines

MAX_LIMIT = 100
CHUNK = 1000  # rows
STORABLE = re.compile(r"[^\x00\ud800-\udfff]*")

Limit = Annotated[int, Field(ge=0, le=MAX_LIMIT, description="How many rows to list at most.", examples=[10]), DIGITS]
Offset = Annotated[int, Field(ge=0, le=INT64, description="How many rows to skip.", examples=[0]), DIGITS]
Cursor = Annotated[
    str | None,
    Field(description="Where the page begins, out of a `Link` that a page came with.", examples=["WyJhNDRiIiw0OCwxXQ"]),
]
Count = Annotated[Literal["exact"] | None, Field(description="Ask for `X-Total-Count`.", examples=["exact"])]


class Place(NamedTuple):
    """Where a page ended: the value of its last row in the column that the list is sorted by, and the row's id."""

    value: int | str | None
    id: int


class Page(NamedTuple):
    """A part of a list: its rows as JSON, and where it ended, if there is more."""

    rows: list[str]
    end: Place | None


class Listing:
    """What a table can be listed by, in statements that are built once for each way to ask."""

    def __init__(self, columns: Sequence[Column[Any]], filters: Mapping[str, ColumnElement[bool]]) -> None:
        """Take what a list shows and what it can be filtered by.

        Args:
            columns: the list can be sorted by each of them, if there is an index for it. One is `id`.
            filters: conditions `column <operator> parameter`, by the name of the parameter. They leave out rows that
                have no value there.
        """
        self.columns = {column.name: column for column in columns}
        self._filters = filters
        self._page = cache(self._build_page)
        self._count = cache(self._build_count)

    async def read(self, session: AsyncSession, sort: str, filters: Mapping[str, Any], start: "Start") -> Page:
        """Read a page.

        Args:
            session: from either door.
            sort: the name of a column, with a `-` for descending. Rows without a value come last in both directions.
            filters: values, by the names of the filters.
            start: where the page begins, and how many rows it has: up to `MAX_LIMIT`, or any number in order of ids.
        """
        statement = self._page(sort, tuple(filters), start.kind, session.get_bind().dialect.name)
        rows = (await session.exec(statement, params={**filters, **start.parameters})).one()
        found = rows.split("\n") if rows else []
        if len(found) <= start.limit or not start.limit:
            return Page(found[: start.limit], None)
        last = json.loads(found[start.limit - 1])
        return Page(found[: start.limit], Place(last[sort.removeprefix("-")], last["id"]))

    async def count(self, session: AsyncSession, filters: Mapping[str, Any]) -> int:
        """Count the rows."""
        return (await session.exec(self._count(tuple(filters)), params=filters)).one()

    async def walk(self, sessions: SessionPool, filters: Mapping[str, Any]) -> AsyncIterator[str]:
        """Read all rows in the order of their ids, as lines of JSON, `CHUNK` at a time.

        Args:
            sessions: where each chunk borrows one. None is held between two chunks, so whoever reads may be slow.
            filters: values, by the names of the filters.
        """
        start: Start | None = Start(CHUNK)
        while start:
            read = partial(self.read, sort="id", filters=filters, start=start)
            page = await sessions.lend(read, begun=start.kind != "beginning")
            yield "".join(f"{row}\n" for row in page.rows)
            start = Start(CHUNK, after=page.end) if page.end else None

    def _build_page(self, sort: str, filters: tuple[str, ...], kind: str, dialect: str) -> SelectOfScalar[str | None]:
        column, number = self.columns[sort.removeprefix("-")], self.columns["id"]
        descending = sort.startswith("-")
        order = [number] if column is number else [column, number]
        wanted = [self._filters[name] for name in filters]
        parts = [
            select(*self.columns.values())
            .where(*part, *wanted)  # in this order: SQLite begins at the first lower bound
            .order_by(*(key.desc() if descending else key for key in order))
            for part in self._split(column, wanted, kind, dialect, descending=descending)
        ]
        limit, offset = bindparam("limit", type_=BigInteger), bindparam("offset", type_=BigInteger)
        if len(parts) == 1:
            return as_lines(parts[0].limit(limit).offset(offset))
        # Each part by itself is read in the order of an index, and only as far as it is needed. That it is not far, the
        # database is told by a number: it plans before it knows the parameters.
        reach = bindparam("reach", type_=BigInteger) if kind == "offset" else MAX_LIMIT + 1
        read = [select(part.limit(reach).subquery()) for part in parts]
        return as_lines(union_all(*read).limit(limit).offset(offset))

    def _split(
        self, column: Column[Any], wanted: Sequence[Any], kind: str, dialect: str, *, descending: bool
    ) -> list[list[ColumnElement[bool]]]:
        """Split a list into parts that follow each other, each of them a range of an index."""
        number, last = self.columns["id"], bindparam("after_id", type_=BigInteger)
        value = bindparam("after_value", type_=BigInteger() if isinstance(column.type, Integer) else column.type)
        behind = number < last if descending else number > last
        own = [condition for condition in wanted if condition.left is column]
        if column is number:
            return [[behind]] if kind in {"value", "missing"} else [[]]
        if kind == "missing":
            return [[column.is_(None), behind]]
        missing: list[list[ColumnElement[bool]]] = [[column.is_(None)]] if column.nullable and not own else []
        # SQLite does not enter an index by two columns, nor does Postgres where the first of them has another bound.
        if kind == "value" and (own or dialect == "sqlite"):
            return [[column == value, behind], [column < value if descending else column > value], *missing]
        if kind == "value":
            key, end = tuple_(column, number), tuple_(value, last)
            return [[key < end if descending else key > end], *missing]
        return [[column.is_not(None)] if missing else [], *missing]

    def _build_count(self, filters: tuple[str, ...]) -> SelectOfScalar[int]:
        return (
            select(func.count()).select_from(self.columns["id"].table).where(*(self._filters[name] for name in filters))
        )


class Start:
    """Where a page begins, and how many rows it has at most.

    Attributes:
        limit: how many rows.
        kind: which of the statements reads it.
        parameters: of that statement.
    """

    def __init__(self, limit: int, *, offset: int = 0, after: Place | None = None) -> None:
        """Begin behind a place, or behind a number of rows. One row more than asked for is read, to see if there is."""
        self.limit = limit
        self.kind = "beginning"
        self.parameters: dict[str, Any] = {"limit": limit + 1, "offset": offset}
        if after:
            self.kind = "missing" if after.value is None else "value"
            self.parameters |= {"after_value": after.value, "after_id": after.id}
        elif offset:
            self.kind = "offset"
            self.parameters["reach"] = min(offset + limit + 1, INT64)


class PageQuery(BaseModel):
    """The parameters of a list. A resource adds `sort` and its filters."""

    listing: ClassVar[Listing]

    offset: Offset = 0
    limit: Limit = MAX_LIMIT
    cursor: Cursor = None
    count: Count = None
    _after: Place | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def open_cursor(self) -> Self:
        """Read the cursor."""
        if self.cursor is not None:
            if "offset" in self.model_fields_set:
                raise PydanticCustomError("cursor_and_offset", "Send a cursor or an offset, not both")
            self._after = self._open(self.cursor)
        return self

    @property
    def sorted_by(self) -> str:
        """What the list is sorted by."""
        return str(getattr(self, "sort", "id"))

    @property
    def filters(self) -> dict[str, Any]:
        """The filters that were sent, with their values."""
        return self.model_dump(exclude={"sort", *PageQuery.model_fields}, exclude_none=True)

    async def read(self, session: AsyncSession) -> Page:
        """Read the page that was asked for."""
        start = Start(self.limit, offset=self.offset, after=self._after)
        return await self.listing.read(session, self.sorted_by, self.filters, start)

    async def headers(self, session: AsyncSession, request: Request, page: Page) -> dict[str, str]:
        """Say where the next page is, if there is one, and how many rows there are in all, if that was asked for."""
        headers = {}
        if page.end:
            again = self.model_dump(exclude_unset=True, exclude_none=True, exclude={"cursor", "offset"})
            query = urlencode({**again, "cursor": self._seal(page.end)})
            headers["Link"] = f'<{own_path(request)}?{query}>; rel="next"'
        if self.count:
            headers["X-Total-Count"] = str(await self.listing.count(session, self.filters))
        return headers

    def _list(self) -> str:
        """Name the list that a cursor belongs to."""
        return hashlib.blake2b(repr((self.sorted_by, self.filters)).encode(), digest_size=6).hexdigest()

    def _seal(self, place: Place) -> str:
        text = json.dumps([self._list(), *place], separators=(",", ":"), ensure_ascii=False)
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def _open(self, cursor: str) -> Place:
        try:
            text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            owner, value, number = json.loads(text)
        except (ValueError, TypeError, RecursionError):
            owner = value = number = None
        column = self.listing.columns[self.sorted_by.removeprefix("-")]
        if owner != self._list() or not fits(number, self.listing.columns["id"]) or not fits(value, column):
            raise PydanticCustomError("cursor", "The cursor is not one of this list")
        return Place(value, number)


def fits(value: Any, column: Column[Any]) -> bool:
    """Tell whether a value that a client sent can be one of a column."""
    if value is None:
        return bool(column.nullable)
    if isinstance(column.type, Integer):
        return type(value) is int and -INT64 - 1 <= value <= INT64
    return isinstance(value, str) and STORABLE.fullmatch(value) is not None
