"""Capacity: whether the connections of all processes fit within what Postgres grants."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.slots import PoolUnavailableError

log = logging.getLogger(__name__)

TIME_LIMIT = 5.0  # seconds

# Every role may read what this reads. A process is known by its database and its `application_name`, or because it is
# this one. A limit of a role or of a database does not hold for superusers, and counts the connections of that role or
# database alone.
LIMITS = text("""
    WITH limits (subject, available, role, database) AS (
        SELECT 'server', current_setting('max_connections')::int
            - coalesce(current_setting('superuser_reserved_connections', true)::int, 0)
            - coalesce(current_setting('reserved_connections', true)::int, 0), NULL::oid, NULL::oid
        UNION ALL SELECT 'role', rolconnlimit, oid, NULL FROM pg_roles
            WHERE rolname = session_user AND rolconnlimit >= 0 AND NOT rolsuper
        UNION ALL SELECT 'database', datconnlimit, NULL, oid FROM pg_database
            WHERE datname = current_database() AND datconnlimit >= 0
            AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = session_user)
    ), connections AS (
        SELECT usesysid, datid, application_name,
            pid = pg_backend_pid()
            OR datname = current_database() AND starts_with(application_name, :prefix) AS ours
        FROM pg_stat_activity WHERE usesysid IS NOT NULL AND datid IS NOT NULL
    )
    SELECT subject, available, count(DISTINCT application_name) FILTER (WHERE ours) AS processes,
        count(*) FILTER (WHERE NOT ours) AS others
    FROM limits JOIN connections ON usesysid = coalesce(role, usesysid) AND datid = coalesce(database, datid)
    GROUP BY subject, available
""")


def name_process(service: str) -> str:
    """Return a name for this process among those of a service, as its `application_name` on Postgres."""
    return f"{service}/{os.getpid()}@{socket.gethostname()}"


async def check_capacity(
    connect: Callable[[], AbstractAsyncContextManager[AsyncConnection]], service: str, size: int
) -> None:
    """Log a warning if the connections of all processes of a service can exceed a limit of Postgres.

    A process can't know of those that start later, so the last to start sees them all. Where Postgres does not tell,
    nothing is logged.

    Args:
        connect: holds a connection for a block. Each process keeps one from its start on.
        service: what `name_process` named the processes with.
        size: how many connections each process opens at most.
    """
    try:
        async with asyncio.timeout(TIME_LIMIT), connect() as connection:
            limits = (await connection.execute(LIMITS, {"prefix": f"{service}/"})).all()
    except (TimeoutError, SQLAlchemyError, PoolUnavailableError):
        return
    for subject, available, processes, others in limits:
        needed = processes * size + others
        if needed > available:
            log.warning(
                "Requests may get 503: %s processes x %s connections + %s of others = %s, but the %s grants %s. Lower"
                " POOL_SIZE, raise the limit, or use a connection pooler: docs/scaling.md.",
                processes,
                size,
                others,
                needed,
                subject,
                available,
            )
            return
