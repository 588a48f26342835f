"""Rows: as the JSON that the database makes of them, which costs a list of a hundred no more than a single one."""

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import Column, Enum, Integer, Select, String, Subquery, Text, func
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlmodel import AutoString, select
from sqlmodel.sql.expression import SelectOfScalar


def as_json(rows: Select[*tuple[Any, ...]]) -> SelectOfScalar[str]:
    """Select the rows as one text: a JSON array of objects, to the byte as pydantic writes it.

    Raises:
        TypeError: a column is neither text nor integer. The databases write other types each in its own way.
    """
    for column in rows.selected_columns:
        if not isinstance(column.type, Integer | String | AutoString) or isinstance(column.type, Enum):
            raise TypeError(
                f"the databases do not agree on how {column.type} is written: leave it to the response model"
            )
    return select(JSONArray(*rows.subquery().columns))


class JSONArray(FunctionElement[str]):
    """The rows of a subquery as JSON, made of its columns."""

    type = Text()
    inherit_cache = True

    @property
    def rows(self) -> Subquery:
        """The subquery."""
        first, *_ = cast(Iterable[Column[Any]], self.clauses)
        return cast(Subquery, first.table)


@compiles(JSONArray, "postgresql")
def on_postgres(array: JSONArray, compiler: SQLCompiler, **options: Any) -> str:
    """Join the rows, since json_agg would put spaces between them."""
    row = func.row_to_json(array.rows.table_valued()).cast(Text)
    return compiler.process(func.concat("[", func.string_agg(row, ","), "]"), **options)


@compiles(JSONArray, "sqlite")
def on_sqlite(array: JSONArray, compiler: SQLCompiler, **options: Any) -> str:
    """Group the rows, each as an object."""
    pairs = [part for column in array.rows.columns for part in (column.name, column)]
    return compiler.process(func.json_group_array(func.json_object(*pairs)), **options)
