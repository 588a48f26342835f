"""The connections of clients to a Postgres database, as the server sees them. It notices late that one is closed."""

import asyncio

from sqlalchemy import URL

from tests.support.polling import wait_until_async
from tests.support.sql import execute_autocommit

# The application_name of those that empty databases, which are not counted.
EMPTYING_NAME = "tests/support/databases.py"


def of_database(url: URL) -> str:
    """Return the end of a query for them."""
    return (
        f"FROM pg_stat_activity WHERE datname = '{url.database}' AND backend_type = 'client backend'"
        f" AND application_name <> '{EMPTYING_NAME}'"
    )


async def count_backends(server: URL, url: URL, condition: str = "true") -> int:
    """Count them, or those that a condition of SQL is true for."""
    found = await asyncio.to_thread(execute_autocommit, server, f"SELECT count(*) {of_database(url)} AND {condition}")
    assert isinstance(found, int)
    return found


async def wait_for_backends(server: URL, url: URL, *, most: int) -> None:
    """Wait until there are no more than this."""

    async def are_few() -> bool:
        return await count_backends(server, url) <= most

    await wait_until_async(are_few)


async def wait_until_asleep(server: URL, url: URL) -> None:
    """Wait until one executes pg_sleep."""

    async def is_asleep() -> int:
        return await count_backends(server, url, "wait_event = 'PgSleep'")

    await wait_until_async(is_asleep)


async def terminate_backends(server: URL, url: URL) -> None:
    """Let the server close all of them, and wait until it has."""
    terminate = f"SELECT count(pg_terminate_backend(pid, 5000)) {of_database(url)}"
    await asyncio.to_thread(execute_autocommit, server, terminate)
