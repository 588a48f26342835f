"""Health: the two questions of an orchestrator."""

from fastapi import Request

from app.http import Router

router = Router(tags=["health"])


@router.get("/livez")
async def is_alive() -> dict[str, str]:
    """Tell that the process answers. It asks nobody else: a restart heals no database."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"description": "The database does not answer, or its schema is behind."}})
async def is_ready(request: Request) -> dict[str, str]:
    """Tell that requests can be served: the database answers, and has the schema that this release needs."""
    await request.app.state.schema.check()
    return {"status": "ready"}
