"""Pagination over HTTP: the query parameters of a list, and the headers of a page.

A list has a total order: by a column, and then by id. Pages that follow each other by `Link` neither skip nor repeat a
row while others write.
"""

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, get_args
from urllib.parse import urlencode

from fastapi import Request, Response
from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError
from sqlmodel.ext.asyncio.session import AsyncSession

from app.cursors import Position, decode, encode, fingerprint
from app.inputs import DIGITS, INT64
from app.keyset import MAX_LIMIT, KeysetPaginator
from app.trailing_slash import own_path


class PageQuery(BaseModel):
    """The query parameters of a list.

    A resource's subclass adds `paginator`, a field for each of the paginator's filters, and `sort`: a Literal of the
    columns that the list can be sorted by, with a `-` for descending.
    """

    paginator: ClassVar[KeysetPaginator]

    offset: Annotated[int, Field(ge=0, le=INT64), DIGITS] = Field(
        default=0, description="How many rows to skip.", examples=[0]
    )
    limit: Annotated[int, Field(ge=0, le=MAX_LIMIT), DIGITS] = Field(
        default=MAX_LIMIT, description="How many rows to list at most.", examples=[10]
    )
    cursor: str | None = Field(
        default=None,
        description="Where the page begins, from the `Link` of another page.",
        examples=["WyJhNDRiIiw0OCwxXQ"],
    )
    count: Literal["exact"] | None = Field(default=None, description="Ask for `X-Total-Count`.", examples=["exact"])

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Check that the list can be filtered and sorted as the fields say.

        Raises:
            TypeError: it can't.
        """
        super().__pydantic_init_subclass__(**options)
        fields = cls.model_fields.keys() - PageQuery.model_fields.keys() - {"sort"}
        if fields != cls.paginator.filters.keys():
            raise TypeError(
                f"{cls.__name__} has the fields {', '.join(sorted(fields)) or 'none'}, and its paginator the filters"
                f" {', '.join(sorted(cls.paginator.filters)) or 'none'}"
            )
        sorts = get_args(cls.model_fields["sort"].annotation) if "sort" in cls.model_fields else ()
        for sort in ("id", *sorts):
            cls.paginator.sort_type(sort)

    @model_validator(mode="after")
    def decode_cursor(self) -> Self:
        """Decode the cursor."""
        if self.cursor is not None:
            if "offset" in self.model_fields_set:
                raise PydanticCustomError("cursor_and_offset", "Send a cursor or an offset, not both")
            _ = self.position
        return self

    @property
    def sorted_by(self) -> str:
        """The sort, which is by id if the resource has no other."""
        return str(getattr(self, "sort", "id"))

    @cached_property
    def filters(self) -> dict[str, Any]:
        """The filters that the client sent, with their values."""
        sent = ((name, getattr(self, name)) for name in self.paginator.filters)
        return {name: value for name, value in sent if value is not None}

    @cached_property
    def position(self) -> Position | None:
        """The position that the page begins after, if the client sent a cursor."""
        if self.cursor is None:
            return None
        try:
            position = decode(self.cursor, fingerprint(self.sorted_by, self.filters))
        except ValueError:
            position = None
        if position is None or not self.paginator.accepts(position, self.sorted_by):
            raise PydanticCustomError("cursor", "The cursor is not one of this list")
        return position

    async def respond(self, request: Request, session: AsyncSession) -> Response:
        """Read the page and respond with it, as a JSON array.

        The header `Link` has the next page, if there is one; `X-Total-Count` the number of rows, if `count=exact`.
        """
        after = self.position or self.offset
        page = await self.paginator.read(session, self.sorted_by, self.filters, self.limit, after)
        headers = {}
        if page.end:
            headers["Link"] = f'<{own_path(request)}?{self._query_after(page.end, request)}>; rel="next"'
        if self.count:
            headers["X-Total-Count"] = str(await self.paginator.count(session, self.filters))
        rows = page.lines.replace("\n", ",")  # no row contains a newline: JSON escapes it
        return Response(f"[{rows}]", media_type="application/json", headers=headers)

    def _query_after(self, position: Position, request: Request) -> str:
        kept = self.model_fields_set - {"cursor", "offset"}
        sent = [(name, value) for name, value in request.query_params.multi_items() if name in kept]
        cursor = encode(position, fingerprint(self.sorted_by, self.filters))
        return urlencode([*sent, ("cursor", cursor)])
