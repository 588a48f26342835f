"""Shutdown: a delay before it, in which `/readyz` is 503 and requests are still served, and SIGHUP as a signal for it.

uvicorn closes its listener as soon as it gets a signal. A balancer sends requests to it until its next probe fails.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fastapi import FastAPI

log = logging.getLogger(__name__)


class ShuttingDownError(Exception):
    """The service is about to stop. The message is for the client."""


@contextmanager
def handle_signals(app: FastAPI, delay: float) -> Iterator[None]:
    """Pass SIGTERM and SIGHUP on to the server after the delay, for a block. The second one is passed on at once.

    By default SIGHUP would kill the process in the middle of its writes. The parent of uvicorn's `--workers` handles it
    itself. Nothing is changed in a thread, where no signal can be handled, and without a server that handles SIGTERM.

    Args:
        app: its `state.is_shutting_down` is true from the first signal on.
        delay: in seconds.
    """
    app.state.is_shutting_down = False
    stop = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(stop):
        yield
        return
    loop = asyncio.get_running_loop()

    def begin(number: int) -> None:
        if delay and not app.state.is_shutting_down:
            log.info("%s: shutting down in %g s. Until then /readyz is 503.", signal.Signals(number).name, delay)
            loop.call_later(delay, stop, number, None)
        else:
            stop(number, None)
        app.state.is_shutting_down = True

    def handle(number: int, _: FrameType | None) -> None:
        loop.call_soon_threadsafe(begin, number)  # a handler of Python's own may not touch the event loop

    replaced = {
        number: signal.signal(number, handle)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as `nohup` sets it
    }
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
