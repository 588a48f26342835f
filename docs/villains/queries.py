"""The lists of villains: their columns, filters and sorts."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field
from sqlalchemy import bindparam
from sqlmodel import SQLModel

from app.inputs import DIGITS, INT64
from app.keyset import KeysetPaginator
from app.pagination import PageQuery
from app.villains.models import Bounty, Moment, Status, VillainPublic

VILLAINS = SQLModel.metadata.tables["villain"]
PUBLIC = [VILLAINS.c[field] for field in VillainPublic.model_fields]


class VillainFilters(BaseModel):
    """Which villains to list."""

    status: Status | None = Field(default=None, description="Only villains of this status.", examples=["caught"])
    min_bounty: Bounty | None = Field(default=None, description="Only villains worth this.", examples=["9.50"])
    seen_since: Moment | None = Field(
        default=None, description="Only villains seen since then.", examples=["2026-11-22T12:00:00Z"]
    )
    nemesis_id: Annotated[int, Field(ge=1, le=INT64), DIGITS] | None = Field(
        default=None, description="Only the villains of this hero.", examples=[1]
    )


class VillainQuery(PageQuery, VillainFilters):
    """Which villains to list, in which order, and which page."""

    paginator: ClassVar = KeysetPaginator(
        VillainPublic,
        PUBLIC,
        filters={
            "status": VILLAINS.c.status == bindparam("status"),
            "min_bounty": VILLAINS.c.bounty >= bindparam("min_bounty"),
            "seen_since": VILLAINS.c.last_seen >= bindparam("seen_since"),
            "nemesis_id": VILLAINS.c.nemesis_id == bindparam("nemesis_id"),
        },
    )

    sort: Literal[
        "id", "-id", "status", "-status", "bounty", "-bounty", "last_seen", "-last_seen", "nemesis_id", "-nemesis_id"
    ] = Field(default="id", description="The order; `-` is for descending.", examples=["-bounty"])
