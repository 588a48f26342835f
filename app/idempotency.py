"""Idempotency: a retried request with the same Idempotency-Key gets the stored response, and runs once.

The key is written in the transaction of the work that it stands for: both are committed, or neither is. Only successful
responses are stored, so after an error the same key can be sent again.
"""

import hashlib
import json
import logging
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from random import randrange
from typing import Annotated, Any

from fastapi import BackgroundTasks, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator
from pydantic.main import IncEx
from pydantic_core import PydanticCustomError, to_json
from sqlalchemy import Index, bindparam, delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Field, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.logs import Repetitions, describe_error
from app.schema import SchemaUnavailableError
from app.security import get_caller
from app.sessions import SessionMaker
from app.slots import PoolUnavailableError

log = logging.getLogger(__name__)
purge_failures = Repetitions(log, limit=1)

LIFETIME = timedelta(hours=24)
PURGE_EVERY = 10  # one new key in so many deletes expired ones
PURGE_SIZE = 100  # expired keys that it deletes: more than have come in the meantime
HASH = "public-sha256:"  # of releases before it, the hash was of the secrets too
VISIBLE = re.compile(r'"([\x21-\x7e]{1,255})"|([\x21-\x7e]{1,255})')

SEVERAL_KEYS = {"type": "idempotency_key", "loc": ("header", "idempotency-key"), "msg": "Send one Idempotency-Key"}


class IdempotencyRecord(SQLModel, table=True):
    """A row of the table `idempotency_key`: the response to a request."""

    __tablename__ = "idempotency_key"
    __table_args__ = (Index("ix_idempotency_key_expires_at", "expires_at"), {"info": {"distributed_by": "key"}})

    scope: str = Field(
        primary_key=True, description="The method and the path, and before them the caller, if there are tokens."
    )
    key: str = Field(primary_key=True)
    fingerprint: str = Field(
        description="A hash of the body without its secrets: another one under the key is an error."
    )
    expires_at: datetime
    answer: str | None = Field(default=None, description="The body, the headers and the status, as JSON.")


class KeyReusedError(Exception):
    """The key was sent with another body before."""


class KeyExpiredError(Exception):
    """The key expired while its response was read. The same request may be sent again."""


def unquote(key: str) -> str:
    """Return a key without its quotes, if it has any.

    Raises:
        PydanticCustomError: it is empty, too long, or has other characters than visible ASCII.
    """
    match = VISIBLE.fullmatch(key)
    if match is None:
        raise PydanticCustomError("idempotency_key", "Send 1 to 255 visible ASCII characters, in quotes or without")
    return match[1] or match[2]


IdempotencyKey = Annotated[
    Annotated[str, AfterValidator(unquote)] | None,
    Header(
        description="A name for this request. A retry with the same one runs once, for 24 hours.",
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
        json_schema_extra={"pattern": f"^(?:{VISIBLE.pattern})$"},
    ),
]

# Parameters do not have the names of columns, which `update` would SET.
RECORDS: Any = SQLModel.metadata.tables["idempotency_key"]
IS_THE_KEY = (RECORDS.c.scope == bindparam("of_scope")) & (RECORDS.c.key == bindparam("of_key"))


def _claim(insert: Any) -> Any:
    """Insert a key, or take over an expired one. A concurrent request with the key waits for this transaction."""
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
STORE = update(RECORDS).where(IS_THE_KEY).values(answer=bindparam("of_answer"))
# Two statements, without locks or a subquery: Citus runs neither on a table that it has distributed.
EXPIRED: Any = (
    select(RECORDS.c.expires_at)
    .where(RECORDS.c.expires_at < bindparam("now"))
    .order_by(RECORDS.c.expires_at)
    .limit(PURGE_SIZE)
)
PURGE_EXPIRED = delete(RECORDS).where(RECORDS.c.expires_at <= bindparam("latest"))


async def run_idempotent(  # noqa: PLR0913 - one more than five, by keyword
    session: AsyncSession,
    request: Request,
    key: str | None,
    body: Any,
    work: Callable[[], Awaitable[Response]],
    *,
    tasks: BackgroundTasks,
    secrets: IncEx | None = None,
) -> Response:
    """Run work once for a key, in the transaction that stores the key; if it has run already, return its response.

    Args:
        session: the session that the work uses.
        request: its method and path, and its caller, are the scope of the key.
        key: without one, the work runs without a transaction.
        body: the validated body of the request.
        work: what to run. Its response has JSON. If it raises, nothing is stored.
        tasks: those of the request. Expired keys are deleted in one, after the response.
        secrets: the fields of the body that nothing may be known about, in the form of pydantic's `exclude`. They are
            not compared: a refusal would tell who guesses them that the guess is wrong.

    Raises:
        RequestValidationError: the request has several keys.
        KeyReusedError: the key was sent with another body.
        KeyExpiredError: the key expired while its response was read.
    """
    if key is None:
        return await work()
    if len(request.headers.getlist("idempotency-key")) > 1:
        raise RequestValidationError([SEVERAL_KEYS])
    now = datetime.now(UTC)
    caller = await get_caller(request)
    scope = f"{caller.name} " if caller else ""  # a name has no space
    scope += f"{request.method} {request.scope['path'].rstrip('/')}"
    record = {"of_scope": scope, "of_key": key}
    fingerprint = HASH + hashlib.sha256(to_json(body, exclude=secrets)).hexdigest()
    claim = {**record, "fingerprint": fingerprint, "expires_at": now + LIFETIME, "now": now}
    async with session.begin():
        dialect = session.get_bind().dialect.name
        if (await session.exec(CLAIM[dialect], params=claim)).one_or_none() is None:
            return await replay(session, record, fingerprint)
        response = await work()
        answer = json.dumps([bytes(response.body).decode(), dict(response.headers), response.status_code])
        await session.exec(STORE, params={**record, "of_answer": answer})
    sessionmaker = getattr(request.app.state, "sessionmaker", None)  # None if a test overrides the sessions
    if sessionmaker and randrange(PURGE_EVERY) == 0:  # noqa: S311 - a sample, not a secret
        tasks.add_task(purge_expired, sessionmaker)
    return response


async def replay(session: AsyncSession, record: dict[str, str], fingerprint: str) -> Response:
    """Return the stored response."""
    stored = (await session.exec(READ, params=record)).one_or_none()
    if stored is None:
        raise KeyExpiredError("The key has just expired.")
    # The hash of an older release can't be compared without the secrets. Its records expire within a day.
    if stored.fingerprint.startswith(HASH) and stored.fingerprint != fingerprint:
        raise KeyReusedError("This key was sent with another body: send a new key with a new request")
    body, headers, status = [*json.loads(stored.answer), 200][:3]  # an older release stored no status
    return Response(body, status, headers, media_type="application/json")


async def purge_expired(sessionmaker: SessionMaker) -> None:
    """Delete the oldest of the expired records. A purge that fails is left to a later key."""
    try:
        async with sessionmaker(autocommit=True) as session:
            if expired := (await session.exec(EXPIRED, params={"now": datetime.now(UTC)})).all():
                await session.exec(PURGE_EXPIRED, params={"latest": expired[-1]})
    except (SQLAlchemyError, PoolUnavailableError, SchemaUnavailableError) as error:
        reason = describe_error(error)
        if purge_failures.should_log(f"The purge of idempotency keys failed: {reason}"):
            log.warning("Expired idempotency keys are left to a later request: %s", reason)
