"""What a hero is: in the database, in requests and in responses."""

from typing import Annotated

from pydantic import MISSING
from pydantic import Field as Limits
from sqlmodel import Field, SQLModel

from app.database import BigId

# Limits hold for what comes in. Rows that an older schema let in stay readable, so HeroPublic knows none of them.
Name = Annotated[str, Limits(min_length=1, max_length=255)]
Age = Annotated[int, Limits(ge=0, le=2**31 - 1)]


class HeroBase(SQLModel):
    """What everybody may know of a hero."""

    name: str = Field(index=True)
    age: int | None = Field(default=None, index=True)


class Hero(HeroBase, table=True):
    """A row of the table `hero`."""

    __table_args__ = {"sqlite_autoincrement": True}  # without it, SQLite gives the id of a deleted hero to the next one

    id: int | None = Field(default=None, primary_key=True, sa_type=BigId)
    secret_name: str


class HeroPublic(HeroBase):
    """A hero in a response."""

    id: int


class HeroCreate(HeroBase):
    """A new hero in a request."""

    name: Name
    age: Age | None = None
    secret_name: Name


class HeroUpdate(SQLModel):
    """The changes to a hero in a request: what is not sent stays as it is."""

    name: Name | MISSING = MISSING
    age: Age | MISSING | None = MISSING
    secret_name: Name | MISSING = MISSING
