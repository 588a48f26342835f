"""The tour names what a request calls, in order."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from fastapi import FastAPI
from sqlalchemy import URL

from app import idempotency, log_config
from app.main import create_app
from app.settings import Settings
from tests.support.app_client import running
from tests.support.heroes import DEADPOND
from tests.support.processes import ROOT

APP = f"{ROOT / 'app'}/"
TOUR = (ROOT / "docs" / "tour.md").read_text()
REQUESTS = {"GET /heroes/1": "GET", "POST /heroes/ with an Idempotency-Key": "POST"}


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The access log is written as a service writes it, and no request deletes expired keys."""
    handler = logging.StreamHandler()
    handler.addFilter(log_config.RequestFilter())
    handler.setFormatter(log_config.TextFormatter())
    access = logging.getLogger("app.access")
    access.addHandler(handler)
    access.setLevel(logging.INFO)
    monkeypatch.setattr(idempotency, "randrange", lambda _: 1)
    yield
    access.removeHandler(handler)
    access.setLevel(logging.NOTSET)


@contextmanager
def calls() -> Iterator[list[tuple[str, str]]]:
    """Yield a list that has, after the block, the file and the name of each function of the app that was called."""
    called: list[tuple[str, str]] = []

    def record(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(APP):
            call = (Path(frame.f_code.co_filename).stem, frame.f_code.co_qualname.rpartition("<locals>.")[2])
            if call not in called and not call[1].startswith("<"):
                called.append(call)

    sys.setprofile(record)
    try:
        yield called
    finally:
        sys.setprofile(None)


async def trace(app: FastAPI, method: str) -> list[tuple[str, str]]:
    """Return what a request calls on a process that has served some."""
    path = {"GET": "/heroes/1", "POST": "/heroes/"}[method]
    body = DEADPOND if method == "POST" else None
    async with running(app) as client:
        assert (await client.post("/heroes/", json=DEADPOND)).status_code == 200
        for number in range(3):
            with calls() as called:
                response = await client.request(method, path, json=body, headers={"Idempotency-Key": str(number)})
            assert response.status_code == 200
    return called


@pytest.mark.usefixtures("logged")
@pytest.mark.parametrize(("title", "method"), REQUESTS.items())
async def test_the_tour_names_each_function_that_a_request_calls_in_order(
    postgres_url: URL, title: str, method: str
) -> None:
    called = [name for _, name in await trace(create_app(Settings(database_url=postgres_url)), method)]
    (section,) = re.findall(rf"^## {re.escape(title)}\n(.*?)^## ", TOUR, re.MULTILINE | re.DOTALL)
    named = [name for name in re.findall(r"`([\w.]+)`", section) if name in called]
    assert list(dict.fromkeys(named)) == called


@pytest.mark.usefixtures("logged")
async def test_the_picture_of_the_tour_has_calls_of_a_request_in_order(postgres_url: URL) -> None:
    called = await trace(create_app(Settings(database_url=postgres_url)), "GET")
    drawn = re.findall(r"^ +\w+->>(\w+): ([\w.]+)$", TOUR, re.MULTILINE)
    assert len(drawn) > 5
    assert drawn == [call for call in called if call in drawn]
