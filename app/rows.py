"""Rows: as the JSON that the database makes of them, which costs a list of a hundred little more than a single one."""

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import Column, ColumnElement, Enum, Integer, SelectBase, String, Subquery, Text, func, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine
from sqlmodel import AutoString, select
from sqlmodel.sql.expression import SelectOfScalar


def as_lines(rows: SelectBase) -> SelectOfScalar[str | None]:
    """Select the rows as one text: a line of JSON for each, to the byte as pydantic writes it. None if there are none.

    Raises:
        TypeError: a column is neither text nor integer. The databases write other types each in its own way.
    """
    check_types(rows.selected_columns)
    return select(JSONLines(*rows.subquery().columns))


def check_types(columns: Iterable[ColumnElement[Any]]) -> None:
    """Refuse columns that the databases don't agree on.

    Raises:
        TypeError: a column is neither text nor integer.
    """
    for column in columns:
        if not isinstance(column.type, Integer | String | AutoString) or isinstance(column.type, Enum):
            raise TypeError(
                f"the databases do not agree on how {column.type} is written: leave it to the response model"
            )


class JSONLines(FunctionElement[str | None]):
    """The rows of a subquery as lines of JSON, made of its columns."""

    type = cast(TypeEngine[str | None], Text())
    inherit_cache = True

    @property
    def rows(self) -> Subquery:
        """The subquery."""
        first, *_ = cast(Iterable[Column[Any]], self.clauses)
        return cast(Subquery, first.table)


@compiles(JSONLines, "postgresql")
def lines_on_postgres(lines: JSONLines, compiler: SQLCompiler, **options: Any) -> str:
    """Join the rows, since json_agg would put spaces between them."""
    row = func.row_to_json(lines.rows.table_valued()).cast(Text)
    return compiler.process(func.string_agg(row, literal_column("E'\\n'")), **options)


@compiles(JSONLines, "sqlite")
def lines_on_sqlite(lines: JSONLines, compiler: SQLCompiler, **options: Any) -> str:
    """Join the rows, each as an object."""
    pairs = [part for column in lines.rows.columns for part in (column.name, column)]
    return compiler.process(func.group_concat(func.json_object(*pairs), func.char(10)), **options)
