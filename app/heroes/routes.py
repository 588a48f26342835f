"""The operations on heroes. What the tutorial has is one statement each."""

from typing import Annotated, Any

from fastapi import Body, HTTPException, Path, Query, Request, Response
from pydantic_core import to_json
from sqlalchemy import Row, bindparam, delete, insert, update
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.errors import responses
from app.etags import IfMatch, IfNoneMatch, PreconditionFailed, building_on, etag, is_known
from app.heroes.lists import HEROES, PUBLIC, HeroFilters, HeroQuery
from app.heroes.models import HeroCreate, HeroDeleted, HeroPublic, HeroUpdate
from app.http import JSONLinesResponse, Router, location, returns
from app.idempotency import Answer, IdempotencyKey, once
from app.inputs import DIGITS, INT64, at_most
from app.sessions import ReadSessionDep, SessionDep, Streams

MAX_BATCH = 1000
MAX_BATCH_BYTES = 8_000_000

router = Router(prefix="/heroes", tags=["heroes"], responses=responses(422, 500, 503))

HeroId = Annotated[
    int, Path(ge=-INT64 - 1, le=INT64, description="The id that a response showed.", examples=[1]), DIGITS
]
HeroBatch = Annotated[list[HeroCreate], Body(min_length=1, max_length=MAX_BATCH), at_most(MAX_BATCH)]
HeroRow = Row[*tuple[Any, ...]]

UNCHANGED = returns("ETag", status=304, description="The client has it already.")
LINE = '{"name":"Deadpond","age":48,"id":1}\n'
LINES: dict[int | str, dict[str, Any]] = {
    200: {"content": {JSONLinesResponse.media_type: {"schema": {"type": "string"}, "example": LINE}}}
}

# Statements are built once: SQLAlchemy takes as long to build one as to run it.
SHOWN = [*PUBLIC, HEROES.c.version]
IS_THE_HERO = HEROES.c.id == bindparam("hero_id")
CREATE = insert(HEROES).returning(*SHOWN)
CREATE_ALL = insert(HEROES).returning(*PUBLIC)
READ = select(*SHOWN).where(IS_THE_HERO)
UPDATE = update(HEROES).where(IS_THE_HERO).values(version=HEROES.c.version + 1).returning(*SHOWN)
DELETE = delete(HEROES).where(IS_THE_HERO).returning(*SHOWN)


@router.post("/", response_model=HeroPublic, responses=responses(400, 413) | returns("ETag", "Location"))
async def create_hero(
    hero: HeroCreate, request: Request, session: SessionDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Add a hero. The database chooses its id."""

    async def create() -> Answer:
        created = (await session.exec(CREATE, params=hero.model_dump())).one()
        headers = {"ETag": etag(created.version), "Location": location(request, created.id)}
        return Answer(HeroPublic.model_validate(created).model_dump_json(), headers)

    return (await once(session, request, idempotency_key, hero, create)).response()


@router.post("/batch", response_model=list[HeroPublic], responses=responses(400, 413), max_body_size=MAX_BATCH_BYTES)
async def create_heroes(
    heroes: HeroBatch, request: Request, session: SessionDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Add up to 1,000 heroes: all of them, or none. The answer has them in the same order."""

    async def create() -> Answer:
        created = await session.exec(CREATE_ALL, params=[hero.model_dump() for hero in heroes])
        in_order = sorted(created, key=lambda hero: hero.id)
        return Answer(to_json([dict(zip(HeroPublic.model_fields, hero, strict=True)) for hero in in_order]).decode())

    return (await once(session, request, idempotency_key, heroes, create)).response()


@router.get("/", response_model=list[HeroPublic], responses=returns("Link", "X-Total-Count"))
async def read_heroes(query: Annotated[HeroQuery, Query()], request: Request, session: ReadSessionDep) -> Response:
    """List heroes, page by page."""
    page = await query.read(session)
    headers = await query.headers(session, request, page)
    return Response(f"[{','.join(page.rows)}]", media_type="application/json", headers=headers)


@router.get("/export", response_class=Response, responses=LINES)
async def export_heroes(filters: Annotated[HeroFilters, Query()], request: Request, streams: Streams) -> Response:
    """Send every hero, one to a line, in the order of their ids."""
    lines = HeroQuery.listing.walk(streams, filters.model_dump(exclude_none=True))
    return await JSONLinesResponse.begin(request, lines)


@router.get("/{hero_id}", response_model=HeroPublic, responses=responses(404) | UNCHANGED | returns("ETag"))
async def read_hero(
    hero_id: HeroId, response: Response, session: ReadSessionDep, if_none_match: IfNoneMatch = ()
) -> HeroRow | Response:
    """Show one hero."""
    hero: HeroRow | None = (await session.exec(READ, params={"hero_id": hero_id})).one_or_none()
    if hero is None:
        raise HeroNotFound
    response.headers["ETag"] = etag(hero.version)
    if is_known(hero.version, if_none_match):
        return Response(status_code=304, headers=response.headers)
    return hero


@router.patch("/{hero_id}", response_model=HeroPublic, responses=responses(400, 404, 412, 413) | returns("ETag"))
async def update_hero(
    hero_id: HeroId, hero: HeroUpdate, response: Response, session: SessionDep, if_match: IfMatch = ()
) -> HeroRow:
    """Change what is sent of a hero. What is not sent stays as it is."""
    changes = hero.model_dump()
    statement = building_on(UPDATE if changes else READ, HEROES.c.version, if_match)
    updated = (await session.exec(statement, params={"hero_id": hero_id, **changes})).one_or_none()
    if updated is None:
        raise await reason(session, hero_id, if_match)
    response.headers["ETag"] = etag(updated.version)
    return updated


@router.delete("/{hero_id}", responses=responses(404, 412))
async def delete_hero(hero_id: HeroId, session: SessionDep, if_match: IfMatch = ()) -> HeroDeleted:
    """Remove a hero. Of several who remove the same one, exactly one is told that it did."""
    statement = building_on(DELETE, HEROES.c.version, if_match)
    if (await session.exec(statement, params={"hero_id": hero_id})).one_or_none() is None:
        raise await reason(session, hero_id, if_match)
    return HeroDeleted(ok=True)


class HeroNotFound(HTTPException):
    """404: there is no such hero."""

    def __init__(self) -> None:
        super().__init__(status_code=404, detail="Hero not found")


async def reason(session: AsyncSession, hero_id: int, if_match: IfMatch) -> HTTPException:
    """Say why a statement found no hero: there is none, or it has another version than the client wants."""
    if if_match and (await session.exec(READ, params={"hero_id": hero_id})).one_or_none():
        return PreconditionFailed()
    return HeroNotFound()
