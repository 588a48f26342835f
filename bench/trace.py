"""Draws the traces of three requests, as a collector receives them: docs/trace.svg.

.venv-bench/bin/python -m bench.trace
"""

import argparse
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.charts import plot_traces
from bench.databases import ROOT, postgres, temporary_folder
from bench.servers import CONTENDERS, OURS, Server
from tests.support.otlp_receiver import Receiver, Span, otlp_receiver

TIMES = 30  # that each request is sent: the first ones connect, and compile their statements
TIMEOUT = 10  # seconds for the spans to arrive


@dataclass(frozen=True)
class Bar:
    """A span to draw: what it is called, how deep it is, and its time in nanoseconds."""

    label: str
    is_statement: bool
    depth: int
    began_at: int
    ended_at: int


Trace = list[Bar]


def main() -> None:
    """Send the requests to the service on Postgres, and draw the fastest of each."""
    parser = argparse.ArgumentParser(description="Draw the traces of three requests.")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/trace.svg", help="the file to write")
    options = parser.parse_args()
    with (
        temporary_folder() as folder,
        postgres(folder) as database,
        otlp_receiver() as receiver,
        Server(CONTENDERS[OURS], database, folder, receiver.settings) as server,
    ):
        database.reset()
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
            rounds = [send(client, f"key-{number}") for number in range(TIMES)]
        traces = [[read_trace(receiver, response) for response in responses] for responses in zip(*rounds, strict=True)]
    plot_traces(
        [min(each, key=lambda trace: trace[0].ended_at - trace[0].began_at) for each in traces], options.picture
    )


def send(client: httpx.Client, key: str) -> list[httpx.Response]:
    """Send each request once."""
    hero = {"name": "Deadpond", "secret_name": "Dive Wilson"}
    return [
        client.post("/heroes/", json=hero, headers={"Idempotency-Key": key}),
        client.get("/heroes/?sort=-age&limit=100"),
        client.get("/heroes/1"),
    ]


def read_trace(receiver: Receiver, response: httpx.Response) -> Trace:
    """Wait for the server span of a response, and return it with those inside it.

    Raises:
        SystemExit: it has not arrived in time.
    """
    span_id = response.raise_for_status().headers["traceresponse"].split("-")[2]
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        for span in receiver.spans:
            if span.span_id == span_id:
                return list(bars(receiver, span))
        time.sleep(0.01)
    raise SystemExit("the spans have not arrived")


def bars(receiver: Receiver, span: Span, depth: int = 0) -> Iterator[Bar]:
    """Yield a span and those inside it."""
    statement = str(span.attributes.get("db.statement", ""))
    with_table = re.match(r"(INSERT INTO|UPDATE|DELETE FROM) \w+", statement)
    label = with_table[0] if with_table else span.name
    yield Bar(label, is_statement=bool(statement), depth=depth, began_at=span.started_at, ended_at=span.ended_at)
    for child in receiver.children(span):
        yield from bars(receiver, child, depth + 1)


if __name__ == "__main__":
    main()
