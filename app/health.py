"""Health: liveness and readiness probes."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from app.openapi import error_responses
from app.sessions import SessionMakerDep
from app.shutdown import ShuttingDownError

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The response to a successful probe."""

    status: Literal["alive", "ready"]


@router.get("/livez")
async def is_alive() -> Health:
    """Tell whether the process is alive, without I/O: a restart does not repair a database."""
    return Health(status="alive")


@router.get("/readyz", responses=error_responses(503))
async def is_ready(request: Request, sessionmaker: SessionMakerDep) -> Health:
    """Tell whether requests can be served: the database answers, and has the schema that this release needs."""
    if getattr(request.app.state, "is_shutting_down", False):
        raise ShuttingDownError("The service is shutting down.")
    await sessionmaker.check()
    return Health(status="ready")
