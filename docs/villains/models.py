"""Villains: in the database, in requests and in responses."""

from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated

from pydantic import Field as Value
from sqlalchemy import Index
from sqlmodel import Field, Relationship, SQLModel, UTCDateTime

from app.database import BigId, CodePoints
from app.heroes.models import Hero, HeroPublic
from app.inputs import INT64, JSON_INTEGER, UTC_DATETIME, Text


class Status(Enum):
    """Where a villain is. A list is sorted by the names, so they are in their order."""

    at_large = "at_large"
    caught = "caught"
    reformed = "reformed"


Bounty = Annotated[Decimal, Value(ge=0, max_digits=12, decimal_places=2)]
HeroId = Annotated[int, Value(ge=1, le=INT64), JSON_INTEGER]
Moment = Annotated[datetime, UTC_DATETIME]


class VillainBase(SQLModel):
    """The fields of a villain."""

    name: str
    status: Status = Status.at_large
    bounty: Decimal = Field(default=Decimal(0), max_digits=12, decimal_places=2)
    last_seen: datetime
    nemesis_id: int | None = None


class Villain(VillainBase, table=True):
    """A row of the table `villain`."""

    __table_args__ = (
        *(Index(f"ix_villain_{name}_id", name, "id") for name in ("status", "bounty", "last_seen", "nemesis_id")),
        {"sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=BigId)
    name: str = Field(sa_type=CodePoints)
    last_seen: datetime = Field(sa_type=UTCDateTime)
    nemesis_id: int | None = Field(default=None, sa_type=BigId, foreign_key="hero.id", ondelete="SET NULL")
    nemesis: Hero | None = Relationship()


class VillainPublic(VillainBase):
    """A villain in a response."""

    id: int


class VillainWithNemesis(VillainPublic):
    """A villain in a response, with the hero that it fights."""

    nemesis: HeroPublic | None


class VillainCreate(VillainBase):
    """A request to create a villain."""

    name: Text
    bounty: Bounty = Decimal(0)
    last_seen: Moment
    nemesis_id: HeroId | None = None


class VillainUpdate(SQLModel):
    """A request to change a villain. Fields that are not sent keep their values."""

    status: Status = Status.at_large
    bounty: Bounty = Decimal(0)
