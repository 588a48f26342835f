"""The operations on heroes, each of them one statement."""

from typing import Annotated, Any

from fastapi import HTTPException, Path, Query, Response
from sqlalchemy import Row, bindparam, delete, insert, update
from sqlmodel import SQLModel, select

from app.errors import responses
from app.heroes.models import HeroCreate, HeroDeleted, HeroPublic, HeroUpdate
from app.http import Router
from app.inputs import DIGITS, INT64
from app.rows import as_json
from app.sessions import ReadSessionDep, SessionDep

router = Router(prefix="/heroes", tags=["heroes"], responses=responses(422, 500, 503))

HeroId = Annotated[int, Path(ge=-INT64 - 1, le=INT64, description="The id that a response showed."), DIGITS]
Offset = Annotated[int, Query(ge=0, le=INT64, description="How many heroes to skip."), DIGITS]
Limit = Annotated[int, Query(ge=0, le=100, description="How many heroes to list at most."), DIGITS]

HEROES = SQLModel.metadata.tables["hero"]
# What a response shows is all that leaves the database: the secret name is not even read.
PUBLIC = [HEROES.c[field] for field in HeroPublic.model_fields]
PublicRow = Row[*tuple[Any, ...]]

# Statements are built once: SQLAlchemy takes as long to build one as to run it.
IS_THE_HERO = HEROES.c.id == bindparam("hero_id")
CREATE = insert(HEROES).returning(*PUBLIC)
READ_PAGE = as_json(select(*PUBLIC).order_by(HEROES.c.id).offset(bindparam("offset")).limit(bindparam("limit")))
READ = select(*PUBLIC).where(IS_THE_HERO)
UPDATE = update(HEROES).where(IS_THE_HERO).returning(*PUBLIC)
DELETE = delete(HEROES).where(IS_THE_HERO).returning(HEROES.c.id)


@router.post("/", response_model=HeroPublic, responses=responses(400, 413))
async def create_hero(hero: HeroCreate, session: SessionDep) -> PublicRow:
    """Add a hero. The database chooses its id."""
    created = await session.exec(CREATE, params=dict(hero))
    return created.one()


@router.get("/", response_model=list[HeroPublic])
async def read_heroes(session: ReadSessionDep, offset: Offset = 0, limit: Limit = 100) -> Response:
    """List heroes in the order of their ids."""
    heroes = await session.exec(READ_PAGE, params={"offset": offset, "limit": limit})
    return Response(heroes.one(), media_type="application/json")


@router.get("/{hero_id}", response_model=HeroPublic, responses=responses(404))
async def read_hero(hero_id: HeroId, session: ReadSessionDep) -> PublicRow:
    """Show one hero."""
    hero = await session.exec(READ, params={"hero_id": hero_id})
    return found(hero.one_or_none())


@router.patch("/{hero_id}", response_model=HeroPublic, responses=responses(400, 404, 413))
async def update_hero(hero_id: HeroId, hero: HeroUpdate, session: SessionDep) -> PublicRow:
    """Change what is sent of a hero. What is not sent stays as it is."""
    changes = hero.model_dump() or {"id": hero_id}  # SQL has no UPDATE that sets nothing
    updated = await session.exec(UPDATE, params={"hero_id": hero_id, **changes})
    return found(updated.one_or_none())


@router.delete("/{hero_id}", responses=responses(404))
async def delete_hero(hero_id: HeroId, session: SessionDep) -> HeroDeleted:
    """Remove a hero. Of several who remove the same one, exactly one is told that it did."""
    deleted = await session.exec(DELETE, params={"hero_id": hero_id})
    found(deleted.one_or_none())
    return HeroDeleted(ok=True)


def found(hero: PublicRow | None) -> PublicRow:
    """Take the hero that a statement was about, or answer 404."""
    if hero is None:
        raise HTTPException(status_code=404, detail="Hero not found")
    return hero
