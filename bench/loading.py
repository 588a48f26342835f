"""Loads heroes through the batch path of a running service.

Names and ages repeat as in real data: one hero in twenty has the same name, almost half share 2,000 names, the
others have one of their own. One in ten has no age, and the ages of the others are around 40.
"""

import json
import random
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from itertools import product
from threading import Lock
from typing import Any

FREQUENT_NAME = "Captain Marvelous"
FIRST_NAMES = (  # noqa: SIM905 - a list would have a line for each word
    "Agent Amazing Arctic Atomic Black Blue Brave Bronze Captain Cosmic Crimson Dark Doctor Emerald Flying Ghost Golden"
    " Green Iron Invisible Lady Little Lord Lunar Madame Magic Major Mighty Mister Night Professor Red Rusty Scarlet"
    " Silent Silver Solar Steel Thunder White"
).split()
LAST_NAMES = (  # noqa: SIM905 - a list would have a line for each word
    "Arrow Avenger Badger Bat Bear Beetle Blade Bolt Comet Condor Cricket Crow Dragon Eagle Falcon Fang Fist Flame Fox"
    " Frost Gladiator Guardian Hammer Hawk Hornet Hound Hunter Knight Lion Lynx Mantis Oracle Otter Owl Panther Phantom"
    " Phoenix Puma Ranger Raven Rider Scorpion Shadow Shield Sparrow Spider Storm Tiger Wasp Wolf"
).split()
NAMES = [" ".join(words) for words in product(FIRST_NAMES, LAST_NAMES)]
BATCH = 1000
CLIENTS = 4
WIDTH = 40  # characters of the progress bar
INTERVAL = 30.0  # seconds between two lines where there is no terminal


def generate_hero(number: int, random_: random.Random) -> dict[str, Any]:
    """Generate the body of a POST. The number makes a name unique."""
    kind, name = random_.random(), random_.choice(NAMES)
    if kind < 0.05:
        name = FREQUENT_NAME
    elif kind > 0.5:
        name = unique_name(number, name)
    age = None if random_.random() < 0.1 else min(max(int(random_.gauss(40, 15)), 0), 120)
    return {"name": name, "age": age, "secret_name": f"Secret number {number}"}


def unique_name(number: int, name: str) -> str:
    """Return a name that no other hero has."""
    return f"{name} {number}"


def batches(heroes: int) -> Generator[tuple[int, bytes]]:
    """Generate the bodies of batches with that many heroes together, always the same, each with its size."""
    random_ = random.Random(heroes)  # noqa: S311 - repeatable, not a secret
    for first in range(0, heroes, BATCH):
        size = min(BATCH, heroes - first)
        yield size, json.dumps([generate_hero(first + number, random_) for number in range(size)]).encode()


class Progress:
    """A bar on a terminal, otherwise a line now and then."""

    def __init__(self, title: str, total: int) -> None:
        """Show nothing yet."""
        self._title, self._total, self._done = title, total, 0
        self._started = self._shown = time.monotonic()

    def advance(self, number: int) -> None:
        """Count what is done."""
        self._done += number
        now, is_terminal = time.monotonic(), sys.stderr.isatty()
        if self._done < self._total and now - self._shown < (0.2 if is_terminal else INTERVAL):
            return
        self._shown = now
        share, rate = self._done / self._total, self._done / (now - self._started)
        words = f"{self._title} {self._done:,} of {self._total:,}, {rate:,.0f}/s"
        if is_terminal:
            bar = ("#" * int(share * WIDTH)).ljust(WIDTH, ".")
            sys.stderr.write(f"\r[{bar}] {share:4.0%} {words}" + "\n" * (self._done >= self._total))
        else:
            sys.stderr.write(f"{words}\n")
        sys.stderr.flush()


def load_heroes(port: int, heroes: int, title: str) -> float:
    """Load heroes into an empty table by a few clients, and return the seconds.

    Raises:
        RuntimeError: a request has failed.
    """
    progress, bodies, lock = Progress(title, heroes), batches(heroes), Lock()

    def run_client() -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            while True:
                with lock:
                    size, body = next(bodies, (0, b""))
                if not size:
                    return
                post_batch(connection, body)
                with lock:
                    progress.advance(size)
        finally:
            connection.close()
            with lock:
                bodies.close()  # if this client has failed, the others stop too

    started = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        for client in [pool.submit(run_client) for _ in range(CLIENTS)]:
            client.result()
    return time.monotonic() - started


def post_batch(connection: HTTPConnection, body: bytes) -> None:
    """Send one batch.

    Raises:
        RuntimeError: it has failed.
    """
    connection.request("POST", "/heroes/batch", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise RuntimeError(f"a batch got {response.status}: {content[:200]!r}")
