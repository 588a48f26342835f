"""The lists of heroes: their columns, filters and sorts."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field
from sqlalchemy import bindparam
from sqlmodel import SQLModel

from app.heroes.models import HeroPublic, Name
from app.inputs import DIGITS, INT32
from app.keyset import KeysetPaginator
from app.pagination import PageQuery

HEROES = SQLModel.metadata.tables["hero"]
# Only these columns are read, so that the secret name stays in the database.
PUBLIC = [HEROES.c[field] for field in HeroPublic.model_fields]

AgeLimit = Annotated[int, Field(ge=0, le=INT32), DIGITS]


class HeroFilters(BaseModel):
    """Which heroes to list."""

    name: Name | None = Field(default=None, description="Only heroes of exactly this name.", examples=["Deadpond"])
    min_age: AgeLimit | None = Field(
        default=None, description="Only heroes whose age is known and at least this.", examples=[18]
    )
    max_age: AgeLimit | None = Field(
        default=None, description="Only heroes whose age is known and at most this.", examples=[65]
    )


class HeroQuery(PageQuery, HeroFilters):
    """Which heroes to list, in which order, and which page."""

    paginator: ClassVar = KeysetPaginator(
        HeroPublic,
        PUBLIC,
        filters={
            "name": HEROES.c.name == bindparam("name"),
            "min_age": HEROES.c.age >= bindparam("min_age"),
            "max_age": HEROES.c.age <= bindparam("max_age"),
        },
    )

    sort: Literal["id", "-id", "name", "-name", "age", "-age"] = Field(
        default="id", description="The order; `-` is for descending. Missing ages come last in both.", examples=["-age"]
    )
