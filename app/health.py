"""Health: the two questions of an orchestrator."""

from typing import Literal

from fastapi import Request
from pydantic import BaseModel

from app.errors import responses
from app.http import Router

router = Router(tags=["health"])


class Health(BaseModel):
    """A good answer to a probe."""

    status: Literal["alive", "ready"]


@router.get("/livez")
async def is_alive() -> Health:
    """Tell that the process answers. It asks nobody else: a restart heals no database."""
    return Health(status="alive")


@router.get("/readyz", responses=responses(503))
async def is_ready(request: Request) -> Health:
    """Tell that requests can be served: the database answers, and has the schema that this release needs."""
    await request.app.state.schema.check()
    return Health(status="ready")
