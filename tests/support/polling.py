"""Wait for a condition that another process or task makes true."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from tests.support.processes import TIMEOUT


def wait_until(condition: Callable[[], object], explain: Callable[[], object] = str) -> None:
    """Poll until the condition is true.

    Args:
        condition: what to poll.
        explain: returns text to add to the failure after TIMEOUT.
    """
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting {explain()}"
        time.sleep(0.01)


async def wait_until_async(condition: Callable[[], Awaitable[object]]) -> None:
    """Poll until the awaited condition is true, and raise TimeoutError if it is not within TIMEOUT."""
    async with asyncio.timeout(TIMEOUT):
        while not await condition():  # noqa: ASYNC110 - other processes change it, and they can set no event here
            await asyncio.sleep(0.01)
