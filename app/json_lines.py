"""JSON Lines by the database: a list of a hundred rows costs little more than a single row.

The databases write text and integers to the byte as pydantic does, and other types each in its own way.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Column, Enum, Integer, SelectBase, String, Text, func, literal_column
from sqlmodel import AutoString, select
from sqlmodel.sql.expression import SelectOfScalar


def matches_model(columns: Sequence[Column[Any]], model: type[BaseModel]) -> bool:
    """Tell whether the database writes rows as the response model does.

    It does if each column is text or an integer and each field only that: the model has no constraints, aliases,
    validators, serializers or computed fields.
    """
    match model.__pydantic_core_schema__:
        case {
            "type": "model",
            "config": config,
            "schema": {"type": "model-fields", "fields": fields} as schema,
            **rest,
        }:
            return (
                "serialization" not in rest
                and not schema.get("computed_fields")
                and config.keys() <= {"from_attributes", "title"}
                and list(fields) == [column.name for column in columns]
                and all(_is_plain(fields[column.name], column) for column in columns)
            )
    return False


def _is_plain(schema: Any, column: Column[Any]) -> bool:
    if not schema.keys() <= {"type", "schema", "metadata", "default"}:
        return False
    match schema["type"]:
        case "model-field" | "nullable" | "default":
            return _is_plain(schema["schema"], column)
        case "int":
            return isinstance(column.type, Integer)
        case "str":
            return isinstance(column.type, String | AutoString) and not isinstance(column.type, Enum)
    return False


def select_json_lines(rows: SelectBase, dialect: str) -> SelectOfScalar[str | None]:
    """Select the rows as one text, with a JSON object on each line. Without rows, it is NULL."""
    subquery = rows.subquery()
    if dialect == "sqlite":
        pairs = [part for column in subquery.columns for part in (column.name, column)]
        return select(func.group_concat(func.json_object(*pairs), func.char(10)))
    row = func.row_to_json(subquery.table_valued()).cast(Text)  # of these texts, since json_agg would write spaces
    return select(func.string_agg(row, literal_column("E'\\n'")))
