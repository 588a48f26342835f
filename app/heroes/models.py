"""What a hero is: in the database, in requests and in responses."""

from typing import Annotated, Literal

from pydantic import MISSING
from pydantic import Field as Value
from sqlalchemy import BigInteger, Index
from sqlmodel import Field, SQLModel

from app.database import BigId, CodePoints
from app.inputs import INT32, JSON_INTEGER, Text

# Limits hold for what comes in. Rows that an older schema let in stay readable, so HeroPublic has none of these.
Name = Annotated[Text, Value(description="What everybody calls the hero.", examples=["Deadpond"])]
Age = Annotated[int, Value(ge=0, le=INT32, description="In years.", examples=[48]), JSON_INTEGER]
SecretName = Annotated[Text, Value(description="It is stored, and never shown.", examples=["Dive Wilson"])]


class HeroBase(SQLModel):
    """What everybody may know of a hero."""

    name: str = Field(description="What everybody calls the hero.")
    age: int | None = Field(default=None, description="In years, if it is known.")


class Hero(HeroBase, table=True):
    """A row of the table `hero`."""

    __table_args__ = (
        Index("ix_hero_age_id", "age", "id"),
        Index("ix_hero_name_id", "name", "id", postgresql_include=["age"]),
        Index("ix_hero_name_age_id", "name", "age", "id"),
        {"sqlite_autoincrement": True},  # without it, SQLite gives the id of a deleted hero to the next one
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=BigId)
    name: str = Field(sa_type=CodePoints)
    secret_name: str
    version: int = Field(default=1, sa_type=BigInteger, sa_column_kwargs={"server_default": "1"})


class HeroPublic(HeroBase):
    """A hero in a response."""

    age: int | None = Field(description="In years, if it is known.")  # no default: a response always has it
    id: int = Field(description="Made by the database, and never used for another hero.")


class HeroCreate(HeroBase):
    """A new hero in a request."""

    name: Name
    age: Age | None = None
    secret_name: SecretName


class HeroUpdate(SQLModel):
    """The changes to a hero in a request: what is not sent stays as it is."""

    name: Name | MISSING = MISSING
    age: Age | MISSING | None = MISSING
    secret_name: SecretName | MISSING = MISSING


class HeroDeleted(SQLModel):
    """The response that a hero is gone."""

    ok: Literal[True]
