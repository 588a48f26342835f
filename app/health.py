"""Health: liveness and readiness probes."""

from typing import Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from app.openapi import error_responses
from app.sessions import SessionMakerDep
from app.shutdown import refuse_while_shutting_down

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The response to a successful probe."""

    status: Literal["alive", "ready"]


@router.get("/livez")
async def is_alive() -> Health:
    """Tell whether the process is alive, without I/O: a restart does not repair a database."""
    return Health(status="alive")


@router.get("/readyz", responses=error_responses(503), dependencies=[Depends(refuse_while_shutting_down)])
async def is_ready(sessionmaker: SessionMakerDep) -> Health:
    """Tell whether requests can be served: the database answers, and has the schema that this release needs."""
    await sessionmaker.check()
    return Health(status="ready")
