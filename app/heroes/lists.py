"""How heroes are listed: the filters, the orders, and the statements behind them."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field
from sqlalchemy import bindparam
from sqlmodel import SQLModel

from app.heroes.models import HeroPublic, Name
from app.inputs import DIGITS, INT32
from app.pagination import Listing, PageQuery

HEROES = SQLModel.metadata.tables["hero"]
# What a response shows is all that leaves the database: the secret name is not even read.
PUBLIC = [HEROES.c[field] for field in HeroPublic.model_fields]

Age = Annotated[int, Field(ge=0, le=INT32), DIGITS]


class HeroFilters(BaseModel):
    """Which heroes to list."""

    name: Name | None = Field(default=None, description="Only heroes of exactly this name.", examples=["Deadpond"])
    min_age: Age | None = Field(
        default=None, description="Only heroes who are known to be that old, or older.", examples=[18]
    )
    max_age: Age | None = Field(
        default=None, description="Only heroes who are known to be that old, or younger.", examples=[65]
    )


class HeroQuery(PageQuery, HeroFilters):
    """Which heroes to list, in which order, and which page of that."""

    listing: ClassVar = Listing(
        PUBLIC,
        {
            "name": HEROES.c.name == bindparam("name"),
            "min_age": HEROES.c.age >= bindparam("min_age"),
            "max_age": HEROES.c.age <= bindparam("max_age"),
        },
    )

    sort: Literal["id", "-id", "name", "-name", "age", "-age"] = Field(
        default="id", description="The order; `-` is for descending. Missing ages come last in both.", examples=["-age"]
    )
