"""Idempotency: a request that is sent again, with the same Idempotency-Key, is answered as it was, and not done again.

The key is written in the transaction of what it stands for: either both are there, or neither is.
"""

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

from fastapi import Header, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError, to_json
from sqlalchemy import Index, bindparam, delete, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Field, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.errors import Unavailable
from app.sessions import transaction

LIFETIME = timedelta(hours=24)
SWEEP = 10  # keys that have expired, and that each new one takes with it: so there are never many
VISIBLE = re.compile(r'"([\x21-\x7e]{1,255})"|([\x21-\x7e]{1,255})')


class IdempotencyRecord(SQLModel, table=True):
    """A row of the table `idempotency_key`: what was answered to a request."""

    __tablename__ = "idempotency_key"
    __table_args__ = (Index("ix_idempotency_key_expires_at", "expires_at"),)

    scope: str = Field(primary_key=True, description="The method and the path.")
    key: str = Field(primary_key=True)
    fingerprint: str = Field(description="Of the body, so that another one under the same key is noticed.")
    expires_at: datetime
    answer: str | None = Field(default=None, description="The body and the headers, as JSON.")


class Answer(NamedTuple):
    """What is answered with 200: the body as JSON, and headers."""

    body: str
    headers: Mapping[str, str] = MappingProxyType({})

    def response(self) -> Response:
        """Turn it into a response."""
        return Response(self.body, media_type="application/json", headers=self.headers)


def unquote(key: str) -> str:
    """Read a key, quoted or not.

    Raises:
        PydanticCustomError: it is empty, too long, or has what can't be seen.
    """
    match = VISIBLE.fullmatch(key)
    if match is None:
        raise PydanticCustomError("idempotency_key", "Send 1 to 255 visible ASCII characters, in quotes or without")
    return match[1] or match[2]


IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Any name for this request, to be sent again with it: for 24 hours it is done only once.",
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
        json_schema_extra={"pattern": f"^(?:{VISIBLE.pattern})$"},
    ),
    AfterValidator(lambda key: unquote(key) if key is not None else None),
]

RECORDS: Any = SQLModel.metadata.tables["idempotency_key"]
IS_THE_KEY = (RECORDS.c.scope == bindparam("of_scope")) & (RECORDS.c.key == bindparam("of_key"))


def _claim(insert: Any) -> Any:
    """Insert a key, or take over one that has expired. Whoever comes second waits for the first one's transaction."""
    new: dict[str, Any] = {
        "fingerprint": bindparam("fingerprint"),
        "expires_at": bindparam("expires_at"),
        "answer": None,
    }
    return (
        insert(RECORDS)
        .values(scope=bindparam("of_scope"), key=bindparam("of_key"), **new)
        .on_conflict_do_update(
            index_elements=[RECORDS.c.scope, RECORDS.c.key], set_=new, where=RECORDS.c.expires_at < bindparam("now")
        )
        .returning(RECORDS.c.key)
    )


CLAIM = {"postgresql": _claim(postgresql.insert), "sqlite": _claim(sqlite.insert)}
READ: Any = select(RECORDS.c.fingerprint, RECORDS.c.answer).where(IS_THE_KEY)
KEEP = update(RECORDS).where(IS_THE_KEY).values(answer=bindparam("of_answer"))
PRIMARY_KEY = tuple_(RECORDS.c.scope, RECORDS.c.key)
EXPIRED = (
    select(RECORDS.c.scope, RECORDS.c.key)
    .where(RECORDS.c.expires_at < bindparam("now"))
    .order_by(RECORDS.c.expires_at)
    .limit(SWEEP)
    .with_for_update(skip_locked=True)
)
FORGET = delete(RECORDS).where(PRIMARY_KEY.in_(EXPIRED))


async def once(
    session: AsyncSession, request: Request, key: str | None, body: Any, work: Callable[[], Awaitable[Answer]]
) -> Answer:
    """Do work once for a key, together with writing the key; if it was done, answer as then.

    Args:
        session: the one that the work uses.
        request: its method and path are the scope of the key.
        key: without one, the work is done, statement by statement.
        body: what the client sent, as it was understood.
        work: what is to be done. If it raises, nothing is kept.

    Raises:
        RequestValidationError: the key was used with another body.
    """
    if key is None:
        return await work()
    now = datetime.now(UTC)
    name = {"of_scope": f"{request.method} {request.scope['path'].rstrip('/')}", "of_key": key}
    fingerprint = hashlib.sha256(to_json(body)).hexdigest()
    claim = {**name, "fingerprint": fingerprint, "expires_at": now + LIFETIME, "now": now}
    async with transaction(session):
        if (await session.exec(CLAIM[session.get_bind().dialect.name], params=claim)).one_or_none() is None:
            return await recall(session, name, fingerprint)
        answer = await work()
        await session.exec(KEEP, params={**name, "of_answer": json.dumps([answer.body, dict(answer.headers)])})
        await session.exec(FORGET, params={"now": now})
        return answer


async def recall(session: AsyncSession, name: dict[str, str], fingerprint: str) -> Answer:
    """Answer as before."""
    kept = (await session.exec(READ, params=name)).one_or_none()
    if kept is None:
        raise Unavailable("The key has just expired.")
    if kept.fingerprint != fingerprint:
        problem = {
            "type": "idempotency_key_reused",
            "loc": ("header", "idempotency-key"),
            "msg": "This key was sent with another body: take a new one for a new request",
        }
        raise RequestValidationError([problem])
    return Answer(*json.loads(kept.answer))
