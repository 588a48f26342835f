"""The operations on villains, on objects: each session is the request's own, and nothing is kept without `commit`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Request, Response
from sqlalchemy.orm import selectinload

from app.heroes.models import Hero
from app.inputs import DIGITS, INT64
from app.openapi import error_responses, response_headers
from app.sessions import ReadSessionDep, SessionDep
from app.villains.models import Villain, VillainCreate, VillainPublic, VillainUpdate, VillainWithNemesis
from app.villains.queries import VillainQuery

MAX_BODY_SIZE = 1_000_000  # bytes

router = APIRouter(
    prefix="/villains",
    tags=["villains"],
    responses=error_responses(422, 500, 503),
)

VillainId = Annotated[int, Path(ge=1, le=INT64, description="The id that a response showed.", examples=[1]), DIGITS]
UserId = Annotated[int, Header(ge=1, le=INT64, description="The hero who asks.", examples=[1]), DIGITS]


async def get_current_user(session: SessionDep, x_user_id: UserId) -> Hero:
    """Load the hero who asks, by the session of the handler. A header proves nothing: a service has a token there."""
    user = await session.get(Hero, x_user_id)
    if user is None:
        raise HTTPException(401, "Unknown user", {"WWW-Authenticate": "Bearer"})
    return user


CurrentUser = Annotated[Hero, Depends(get_current_user)]


@router.post("/", response_model=VillainPublic, responses=error_responses(400, 409, 413), max_body_size=MAX_BODY_SIZE)
async def create_villain(villain: VillainCreate, session: SessionDep) -> Villain:
    """Create a villain."""
    db_villain = Villain.model_validate(villain)
    session.add(db_villain)
    await session.commit()
    return db_villain


@router.get("/", response_model=list[VillainPublic], responses=response_headers("Link", "X-Total-Count"))
async def read_villains(query: Annotated[VillainQuery, Query()], request: Request, session: ReadSessionDep) -> Response:
    """List villains, page by page."""
    return await query.respond(request, session)


@router.get("/{villain_id}", response_model=VillainWithNemesis, responses=error_responses(404))
async def read_villain(villain_id: VillainId, session: ReadSessionDep) -> Villain:
    """Read one villain, with its nemesis."""
    # SQLModel annotates a relationship as what an instance has. Of the class it is an attribute of SQLAlchemy's.
    nemesis = selectinload(Villain.nemesis)  # type: ignore[arg-type]  # see above
    villain = await session.get(Villain, villain_id, options=[nemesis])
    if villain is None:
        raise HTTPException(404, "Villain not found")
    return villain


@router.patch(
    "/{villain_id}", response_model=VillainPublic, responses=error_responses(400, 404, 413), max_body_size=MAX_BODY_SIZE
)
async def update_villain(villain_id: VillainId, changes: VillainUpdate, session: SessionDep) -> Villain:
    """Change the fields of a villain that are sent. The others stay as they are."""
    villain = await session.get(Villain, villain_id)
    if villain is None:
        raise HTTPException(404, "Villain not found")
    villain.sqlmodel_update(changes.model_dump(exclude_unset=True))
    await session.commit()
    return villain


@router.post("/{villain_id}/challenge", response_model=VillainWithNemesis, responses=error_responses(401, 404))
async def challenge_villain(villain_id: VillainId, user: CurrentUser, session: SessionDep) -> Villain:
    """Become the nemesis of a villain."""
    villain = await session.get(Villain, villain_id)
    if villain is None:
        raise HTTPException(404, "Villain not found")
    villain.nemesis = user
    await session.commit()
    return villain
