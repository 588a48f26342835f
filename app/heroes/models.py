"""Heroes: in the database, in requests and in responses."""

from typing import Annotated, Literal

from pydantic import MISSING
from pydantic import Field as Value
from sqlalchemy import BigInteger, Index
from sqlmodel import Field, SQLModel

from app.database import BigId, CodePoints
from app.inputs import INT32, JSON_INTEGER, Text

# Limits apply to requests. HeroPublic has none, so that rows of an older schema stay readable.
Name = Annotated[Text, Value(description="The name that the hero is known by.", examples=["Deadpond"])]
Age = Annotated[int, Value(ge=0, le=INT32, description="The age in years.", examples=[48]), JSON_INTEGER]
SecretName = Annotated[Text, Value(description="Write-only: no response contains it.", examples=["Dive Wilson"])]


class HeroBase(SQLModel):
    """The public fields of a hero."""

    name: str = Field(description="The name that the hero is known by.")
    age: int | None = Field(default=None, description="The age in years, if it is known.")


class Hero(HeroBase, table=True):
    """A row of the table `hero`."""

    __table_args__ = (
        # Sorted by age; by name, and of one name by id (with the age, which is filtered by); of one name by age.
        Index("ix_hero_age_id", "age", "id"),
        Index("ix_hero_name_id", "name", "id", postgresql_include=["age"]),
        Index("ix_hero_name_age_id", "name", "age", "id"),
        {
            "sqlite_autoincrement": True,  # otherwise SQLite reuses the id of a deleted row
            "info": {"distributed_by": "id"},  # for Citus
        },
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=BigId)
    name: str = Field(sa_type=CodePoints)
    secret_name: str
    version: int = Field(default=1, sa_type=BigInteger, sa_column_kwargs={"server_default": "1"})


class HeroPublic(HeroBase):
    """A hero in a response."""

    age: int | None = Field(description="The age in years, if it is known.")  # no default: every response contains it
    id: int = Field(description="Assigned by the database, and never reused.")


class HeroCreate(HeroBase):
    """A request to create a hero."""

    name: Name
    age: Age | None = None
    secret_name: SecretName


class HeroUpdate(SQLModel):
    """A request to change a hero. Fields that are not sent keep their values."""

    name: Name | MISSING = MISSING
    age: Age | MISSING | None = MISSING
    secret_name: SecretName | MISSING = MISSING


class HeroDeleted(SQLModel):
    """The response to a DELETE."""

    ok: Literal[True]
