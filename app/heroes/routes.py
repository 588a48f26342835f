"""The operations on heroes, each of them one statement."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import HTTPException, Path, Query
from sqlalchemy import Row, delete, insert, update
from sqlmodel import col, select

from app.errors import responses
from app.heroes.models import Hero, HeroCreate, HeroDeleted, HeroPublic, HeroUpdate
from app.http import Router
from app.inputs import DIGITS, INT64
from app.sessions import ReadSessionDep, SessionDep

router = Router(prefix="/heroes", tags=["heroes"], responses=responses(422, 500, 503))

HeroId = Annotated[int, Path(ge=-INT64 - 1, le=INT64, description="The id that a response showed."), DIGITS]
Offset = Annotated[int, Query(ge=0, le=INT64, description="How many heroes to skip."), DIGITS]
Limit = Annotated[int, Query(ge=0, le=100, description="How many heroes to list at most."), DIGITS]

# What a response shows is all that leaves the database: the secret name is not even read.
PUBLIC = [col(getattr(Hero, field)) for field in HeroPublic.model_fields]
PublicRow = Row[*tuple[Any, ...]]


@router.post("/", response_model=HeroPublic, responses=responses(400, 413))
async def create_hero(hero: HeroCreate, session: SessionDep) -> PublicRow:
    """Add a hero. The database chooses its id."""
    created = await session.exec(insert(Hero).values(hero.model_dump()).returning(*PUBLIC))
    return created.one()


@router.get("/", response_model=list[HeroPublic])
async def read_heroes(session: ReadSessionDep, offset: Offset = 0, limit: Limit = 100) -> Sequence[PublicRow]:
    """List heroes in the order of their ids."""
    heroes = await session.exec(select(*PUBLIC).order_by(col(Hero.id)).offset(offset).limit(limit))
    return heroes.all()


@router.get("/{hero_id}", response_model=HeroPublic, responses=responses(404))
async def read_hero(hero_id: HeroId, session: ReadSessionDep) -> PublicRow:
    """Show one hero."""
    hero = await session.exec(select(*PUBLIC).where(col(Hero.id) == hero_id))
    return found(hero.one_or_none())


@router.patch("/{hero_id}", response_model=HeroPublic, responses=responses(400, 404, 413))
async def update_hero(hero_id: HeroId, hero: HeroUpdate, session: SessionDep) -> PublicRow:
    """Change what is sent of a hero. What is not sent stays as it is."""
    changes = hero.model_dump() or {"id": hero_id}  # SQL has no UPDATE that sets nothing
    updated = await session.exec(update(Hero).where(col(Hero.id) == hero_id).values(changes).returning(*PUBLIC))
    return found(updated.one_or_none())


@router.delete("/{hero_id}", responses=responses(404))
async def delete_hero(hero_id: HeroId, session: SessionDep) -> HeroDeleted:
    """Remove a hero. Of several who remove the same one, exactly one is told that it did."""
    deleted = await session.exec(delete(Hero).where(col(Hero.id) == hero_id).returning(col(Hero.id)))
    found(deleted.one_or_none())
    return HeroDeleted(ok=True)


def found(hero: PublicRow | None) -> PublicRow:
    """Take the hero that a statement was about, or answer 404."""
    if hero is None:
        raise HTTPException(status_code=404, detail="Hero not found")
    return hero
