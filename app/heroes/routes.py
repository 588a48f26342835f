"""The operations on heroes. Those of the tutorial are one statement each, so they use AUTOCOMMIT."""

from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Body, HTTPException, Path, Query, Request, Response
from pydantic_core import to_json
from sqlalchemy import Row, bindparam, delete, insert, update
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.convertors import StringConvertor, register_url_convertor

from app.admission import AdmissionRoute
from app.etags import (
    READ_PRECONDITIONS,
    WRITE_PRECONDITIONS,
    PreconditionFailed,
    format_etag,
    matches_if_match,
    matches_if_none_match,
    where_preconditions,
)
from app.heroes.models import HeroCreate, HeroDeleted, HeroPublic, HeroUpdate
from app.heroes.queries import HEROES, PUBLIC, HeroFilters, HeroQuery
from app.idempotency import IdempotencyKey, run_idempotent
from app.inputs import DIGITS, INT64
from app.openapi import Responses, error_responses, response_headers
from app.sessions import AutocommitSessionDep, ReadSessionDep, SessionMakerDep
from app.streaming import JSONLinesResponse
from app.trailing_slash import location

MAX_BATCH = 1000  # rows: SQLAlchemy inserts as many with one statement
MAX_BODY_SIZE = 1_000_000  # bytes
MAX_BATCH_SIZE = 8_000_000


class HeroConvertor(StringConvertor):
    """A part of a path that is an id, or was meant to be: not `batch` and `export`, which have their own methods."""

    regex = "(?!(?:batch|export)$)[^/]+"


register_url_convertor("hero", HeroConvertor())

router = APIRouter(
    prefix="/heroes",
    tags=["heroes"],
    responses=error_responses(422, 500, 503),
    route_class=AdmissionRoute,
)

# A negative id is none of this database, but it is an integer: 404, as in the tutorial.
HeroId = Annotated[
    int, Path(ge=-INT64 - 1, le=INT64, description="The id that a response showed.", examples=[1]), DIGITS
]
HeroBatch = Annotated[list[HeroCreate], Body(min_length=1, max_length=MAX_BATCH)]
HeroRow = Row[*tuple[Any, ...]]

NOT_MODIFIED = response_headers("ETag", status=304, description="The client has it already.")
LINE = '{"name":"Deadpond","age":48,"id":1}\n'
LINES: Responses = {200: {"content": {JSONLinesResponse.media_type: {"schema": {"type": "string"}, "example": LINE}}}}

# Statements are built once: SQLAlchemy takes as long to build one as to run it.
VERSIONED = [*PUBLIC, HEROES.c.version]
IS_THE_HERO = HEROES.c.id == bindparam("hero_id")
CREATE = insert(HEROES).returning(*VERSIONED)
CREATE_ALL = insert(HEROES).returning(*PUBLIC)
READ = select(*VERSIONED).where(IS_THE_HERO)
# The parameters of an execution add what to SET: those that are named like a column.
UPDATE = update(HEROES).where(IS_THE_HERO).values(version=HEROES.c.version + 1).returning(*VERSIONED)
DELETE = delete(HEROES).where(IS_THE_HERO).returning(*VERSIONED)

FIELDS = tuple(HeroPublic.model_fields)
SECRETS = {"secret_name"}


@router.get(
    "/{hero_id:hero}",
    response_model=HeroPublic,
    responses=error_responses(404, 412) | NOT_MODIFIED | response_headers("ETag"),
    openapi_extra=READ_PRECONDITIONS,
)
async def read_hero(hero_id: HeroId, request: Request, session: ReadSessionDep) -> Response:
    """Read one hero."""
    hero: HeroRow | None = (await session.exec(READ, params={"hero_id": hero_id})).one_or_none()
    if hero is None:
        raise HeroNotFound
    if not matches_if_match(hero.version, request.headers):
        raise PreconditionFailed(hero.version, request.headers)
    if matches_if_none_match(hero.version, request.headers):
        return Response(status_code=304, headers={"ETag": format_etag(hero.version)})
    return respond(hero)


@router.get("/", response_model=list[HeroPublic], responses=response_headers("Link", "X-Total-Count"))
async def read_heroes(query: Annotated[HeroQuery, Query()], request: Request, session: ReadSessionDep) -> Response:
    """List heroes, page by page."""
    return await query.respond(request, session)


@router.post(
    "/",
    response_model=HeroPublic,
    responses=error_responses(400, 413) | response_headers("ETag", "Location"),
    max_body_size=MAX_BODY_SIZE,
)
async def create_hero(
    hero: HeroCreate,
    request: Request,
    tasks: BackgroundTasks,
    session: AutocommitSessionDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a hero. The database chooses its id."""

    async def create() -> Response:
        created = (await session.exec(CREATE, params=hero.model_dump())).one()
        return respond(created, Location=location(request, created.id))

    return await run_idempotent(session, request, idempotency_key, hero, create, tasks=tasks, secrets=SECRETS)


@router.patch(
    "/{hero_id:hero}",
    response_model=HeroPublic,
    responses=error_responses(400, 404, 412, 413) | response_headers("ETag"),
    openapi_extra=WRITE_PRECONDITIONS,
    max_body_size=MAX_BODY_SIZE,
)
async def update_hero(hero_id: HeroId, hero: HeroUpdate, request: Request, session: AutocommitSessionDep) -> Response:
    """Change the fields of a hero that are sent. The others stay as they are."""
    changes = hero.model_dump()
    statement = where_preconditions(UPDATE if changes else READ, HEROES.c.version, request.headers)
    updated = (await session.exec(statement, params={"hero_id": hero_id, **changes})).one_or_none()
    if updated is None:
        raise await missing_or_stale(session, hero_id, request)
    return respond(updated)


@router.delete("/{hero_id:hero}", responses=error_responses(404, 412), openapi_extra=WRITE_PRECONDITIONS)
async def delete_hero(hero_id: HeroId, request: Request, session: AutocommitSessionDep) -> HeroDeleted:
    """Delete a hero. Of several concurrent requests to delete it, exactly one succeeds."""
    statement = where_preconditions(DELETE, HEROES.c.version, request.headers)
    if (await session.exec(statement, params={"hero_id": hero_id})).one_or_none() is None:
        raise await missing_or_stale(session, hero_id, request)
    return HeroDeleted(ok=True)


@router.post(
    "/batch", response_model=list[HeroPublic], responses=error_responses(400, 413), max_body_size=MAX_BATCH_SIZE
)
async def create_heroes(
    heroes: HeroBatch,
    request: Request,
    tasks: BackgroundTasks,
    session: AutocommitSessionDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create up to 1,000 heroes: all of them, or none. The response has them in the same order."""

    async def create() -> Response:
        created = await session.exec(CREATE_ALL, params=[hero.model_dump() for hero in heroes])
        in_order = sorted(created, key=lambda hero: hero.id)
        return Response(to_json([to_public(hero) for hero in in_order]), media_type="application/json")

    secrets = {"__all__": SECRETS}  # of each item
    return await run_idempotent(session, request, idempotency_key, heroes, create, tasks=tasks, secrets=secrets)


@router.get("/export", response_class=Response, responses=LINES)
async def export_heroes(
    filters: Annotated[HeroFilters, Query()], request: Request, sessionmaker: SessionMakerDep
) -> Response:
    """Stream every hero, one to a line, in the order of their ids."""
    lines = HeroQuery.paginator.iter_chunks(sessionmaker.streaming(), filters.model_dump(exclude_none=True))
    return await JSONLinesResponse.start(request, lines)


class HeroNotFound(HTTPException):
    """404: the hero does not exist."""

    def __init__(self) -> None:
        super().__init__(status_code=404, detail="Hero not found")


async def missing_or_stale(session: AsyncSession, hero_id: int, request: Request) -> HTTPException:
    """Tell why a statement found no hero: it does not exist, or has a version that a precondition excludes."""
    is_conditional = "if-match" in request.headers or "if-none-match" in request.headers
    hero = (await session.exec(READ, params={"hero_id": hero_id})).one_or_none() if is_conditional else None
    return PreconditionFailed(hero.version, request.headers) if hero else HeroNotFound()


def to_public(row: HeroRow) -> dict[str, Any]:
    """Return what the response model shows of a row. Its types are JSON's own, so no serializer is needed."""
    return dict(zip(FIELDS, row, strict=False))  # the version is behind them


def respond(row: HeroRow, **headers: str) -> Response:
    """Respond with a hero. Returning the row would cost 20 µs more, for the same response."""
    headers = {"ETag": format_etag(row.version), **headers}
    return Response(to_json(to_public(row)), media_type="application/json", headers=headers)
