"""Random sequences of requests to two processes on one database: each response is the one that a model gives."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from itertools import count, cycle
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import URL

from tests.support.fuzzing import EXAMPLES, fuzzed
from tests.support.processes import TIMEOUT
from tests.support.service import running_service
from tests.support.sql import execute

JSON = {"Content-Type": "application/json"}
SORTS = ["id", "-id", "name", "-name", "age", "-age"]
MAX_LIMIT = 100
NOT_FOUND = (404, b'{"detail":"Hero not found"}')
STALE = (412, b'{"detail":"The resource has changed: no ETag in If-Match matches its current version."}')
CURRENT = (412, b'{"detail":"An ETag in If-None-Match matches the resource\'s current version."}')
KEYS = (f"fuzz-{number}" for number in count())
EACH_TIME = {"date", "x-request-id"}  # headers that differ in equal responses

# Few names and ages, so that many heroes are tied, and any others.
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=6)
names = st.sampled_from(["a", "A", "ab", "é", "Z", "\N{ROCKET}", 'a"b\\']) | text
ages = st.integers(0, 4) | st.integers(0, 2**31 - 1)
heroes = st.fixed_dictionaries({"name": names, "secret_name": text}, optional={"age": st.none() | ages})
batches = st.lists(heroes, min_size=1, max_size=4)
invalid_heroes = st.sampled_from(
    [{}, {"name": "a"}, {"name": "", "secret_name": "b"}, {"name": "a", "secret_name": "b", "age": -1}, None, "a"]
)
changes = st.fixed_dictionaries({}, optional={"name": names, "age": st.none() | ages, "secret_name": text})
filters = st.fixed_dictionaries({}, optional={"name": names, "min_age": ages, "max_age": ages})
processes = st.sampled_from([0, 1])

# Conditions, by the version that the hero has.
STRONG = {"current": '"{0}"', "any": "*", "one of a list": '"0", W/"7", "{0}"'}
WEAK = {"weak": 'W/"{0}"', "weak in a list": '"x",W/"{0}"'}
OTHER = {"next": '"{1}"', "zero": '"0"', "malformed": "{0}", "empty": ""}
conditions = st.none() | st.sampled_from([*STRONG, *WEAK, *OTHER])


class Answer(NamedTuple):
    """A response: its status, its body, and its headers but those that always differ."""

    status: int
    body: bytes
    headers: dict[str, str]


@dataclass
class Process:
    """One of the processes of the service, and how many requests it got."""

    connection: HTTPConnection
    requests: int = 0

    def send(self, method: str, target: str, body: Any = None, **headers: str) -> None:
        """Send a request, with a body as JSON unless it is None."""
        self.requests += 1
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            named |= JSON
        self.connection.request(method, target, None if body is None else json.dumps(body), named)

    def receive(self) -> Answer:
        """Read the response to it."""
        response = self.connection.getresponse()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, response.read(), {key: headers[key] for key in headers.keys() - EACH_TIME})

    def request(self, method: str, target: str, body: Any = None, **headers: str) -> Answer:
        """Send a request and read the response."""
        self.send(method, target, body, **headers)
        return self.receive()


@dataclass
class Hero:
    """What the model knows of a hero. Its fields are in the order that responses have."""

    name: str
    age: int | None
    id: int
    version: int = 1

    @property
    def row(self) -> dict[str, Any]:
        return {"name": self.name, "age": self.age, "id": self.id}


@dataclass
class Walk:
    """A list that is read page by page, while others write."""

    target: str
    unchanged: set[int]  # the ids of the heroes that it must show
    seen: list[int] = field(default_factory=list)


@dataclass
class Keyed:
    """A POST with an Idempotency-Key, and its response."""

    target: str
    body: Any
    key: str
    answer: Answer


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def select(rows: list[Hero], query: dict[str, Any]) -> list[Hero]:
    """Filter and sort heroes, as a list does."""
    low, high = query.get("min_age", -1), query.get("max_age", 2**31)
    bounded = "min_age" in query or "max_age" in query
    found = [
        hero
        for hero in rows
        if query.get("name", hero.name) == hero.name
        and (not bounded or (hero.age is not None and low <= hero.age <= high))
    ]
    sort = query.get("sort", "id")
    column = sort.removeprefix("-")
    known = [hero for hero in found if getattr(hero, column) is not None]
    missing = [hero for hero in found if getattr(hero, column) is None]
    descending = sort.startswith("-")
    known.sort(key=lambda hero: (getattr(hero, column), hero.id), reverse=descending)
    missing.sort(key=lambda hero: hero.id, reverse=descending)
    return known + missing


def next_target(answer: Answer) -> str | None:
    """Return the target of the next page."""
    found = re.fullmatch(r'<(/heroes/\?[^>]*)>; rel="next"', answer.headers.get("link", '<>; rel="next"'))
    assert found or "link" not in answer.headers
    return found[1] if found else None


class HeroMachine(RuleBasedStateMachine):
    """Requests to either process, and the heroes that the database has after them."""

    ids = Bundle("ids")  # also of deleted heroes
    keyed = Bundle("keyed")
    walks = Bundle("walks")

    def __init__(self, url: URL, processes: list[Process], steps: Iterator[int]) -> None:
        super().__init__()
        execute(url, "DELETE FROM hero")
        for process in processes:
            process.connection.close()  # the next request opens it again, with no response of a failed run in it
        self.processes = processes
        self.steps = steps
        self.heroes: dict[int, Hero] = {}
        self.last_id = 0
        self.open_walks: list[Walk] = []
        self.turns = cycle(processes)

    def store(self, body: dict[str, Any], hero_id: int) -> int:
        """Store a hero that was created: its id is new."""
        assert hero_id > self.last_id
        self.last_id = hero_id
        self.heroes[hero_id] = Hero(body["name"], body.get("age"), hero_id)
        return hero_id

    def stored(self, body: dict[str, Any], answer: Answer) -> int:
        """Store a hero, and compare the response."""
        assert answer.status == 200
        hero_id = self.store(body, json.loads(answer.body)["id"])
        assert answer.body == dump(self.heroes[hero_id].row)
        assert (answer.headers["etag"], answer.headers["location"]) == ('"1"', f"/heroes/{hero_id}")
        return hero_id

    def stored_batch(self, body: list[dict[str, Any]], answer: Answer) -> list[int]:
        """Store the heroes of a batch, and compare the response."""
        assert answer.status == 200
        rows = json.loads(answer.body)
        found = [self.store(hero, row["id"]) for hero, row in zip(body, rows, strict=True)]
        assert answer.body == dump([self.heroes[hero_id].row for hero_id in found])
        return found

    def conditional(
        self, hero_id: int, if_match: str | None, if_none_match: str | None
    ) -> tuple[dict[str, str], tuple[int, bytes] | None]:
        """Return the headers of these conditions, and the response to a write that they don't allow."""
        hero = self.heroes.get(hero_id)
        version = hero.version if hero else 1
        sent = {"If_Match": if_match, "If_None_Match": if_none_match}
        tags = STRONG | WEAK | OTHER
        headers = {name: tags[kind].format(version, version + 1) for name, kind in sent.items() if kind}
        if hero is None:
            return headers, NOT_FOUND
        if if_match and if_match not in STRONG:
            return headers, STALE
        return headers, CURRENT if if_none_match in STRONG | WEAK else None

    def forget(self, hero_id: int) -> None:
        """Take a hero that was changed or deleted from what the walks must show."""
        for walk in self.open_walks:
            walk.unchanged.discard(hero_id)

    def change(self, hero_id: int, body: dict[str, Any]) -> None:
        """Change a hero of the model."""
        hero = self.heroes[hero_id]
        before = hero.row
        hero.name, hero.age = body.get("name", hero.name), body.get("age", hero.age)
        hero.version += bool(body)
        if hero.row != before:
            self.forget(hero_id)

    @rule(target=ids, at=processes, body=heroes)
    def post(self, at: int, body: dict[str, Any]) -> int:
        return self.stored(body, self.processes[at].request("POST", "/heroes/", body))

    @rule(at=processes, body=invalid_heroes)
    def post_an_invalid_hero(self, at: int, body: Any) -> None:
        assert self.processes[at].request("POST", "/heroes/", body).status == 422

    @rule(target=ids, at=processes, body=batches)
    def post_a_batch(self, at: int, body: list[dict[str, Any]]) -> Any:
        return multiple(*self.stored_batch(body, self.processes[at].request("POST", "/heroes/batch", body)))

    @precondition(lambda self: len(self.heroes) < MAX_LIMIT)
    @rule(target=ids, at=processes, body=batches, number=st.integers(MAX_LIMIT - 2, MAX_LIMIT + 2))
    def post_more_than_a_page(self, at: int, body: list[dict[str, Any]], number: int) -> Any:
        many = (body * number)[:number]
        found = self.stored_batch(many, self.processes[at].request("POST", "/heroes/batch", many))
        return multiple(found[0], found[-1])

    @rule(at=processes, valid=batches, invalid=invalid_heroes, index=st.integers(0, 4))
    def post_a_batch_with_an_invalid_hero(self, at: int, valid: list[dict[str, Any]], invalid: Any, index: int) -> None:
        index = min(index, len(valid))
        answer = self.processes[at].request("POST", "/heroes/batch", [*valid[:index], invalid, *valid[index:]])
        assert answer.status == 422
        assert {tuple(error["loc"][:2]) for error in json.loads(answer.body)["detail"]} == {("body", index)}

    @rule(target=keyed, at=processes, body=heroes | batches, is_refused_first=st.booleans())
    def post_with_a_key(self, at: int, body: Any, *, is_refused_first: bool) -> Keyed:
        key, target = next(KEYS), "/heroes/batch" if isinstance(body, list) else "/heroes/"
        if is_refused_first:  # only successful responses are stored
            assert self.processes[1 - at].request("POST", target, {}, Idempotency_Key=key).status == 422
        answer = self.processes[at].request("POST", target, body, Idempotency_Key=key)
        if isinstance(body, list):
            self.stored_batch(body, answer)
        else:
            self.stored(body, answer)
        return Keyed(target, body, key, answer)

    @rule(at=processes, keyed=keyed, secret_name=st.none() | text)
    def retry_with_the_key(self, at: int, keyed: Keyed, secret_name: str | None) -> None:
        """Secret names are not compared."""
        body = keyed.body
        if secret_name and not isinstance(body, list):
            body = body | {"secret_name": secret_name}
        assert self.processes[at].request("POST", keyed.target, body, Idempotency_Key=keyed.key) == keyed.answer

    @rule(at=processes, keyed=keyed, body=heroes)
    def send_another_body_with_the_key(self, at: int, keyed: Keyed, body: dict[str, Any]) -> None:
        other: Any = body | {"name": "another name"}
        if isinstance(keyed.body, list):
            other = [*keyed.body, other]
        answer = self.processes[at].request("POST", keyed.target, other, Idempotency_Key=keyed.key)
        assert answer.status == 422
        assert [error["type"] for error in json.loads(answer.body)["detail"]] == ["idempotency_key_reused"]

    @rule(target=ids, body=heroes)
    def post_to_both_at_once_with_a_key(self, body: dict[str, Any]) -> int:
        key = next(KEYS)
        for process in self.processes:
            process.send("POST", "/heroes/", body, Idempotency_Key=key)
        first, second = (process.receive() for process in self.processes)
        assert first == second
        return self.stored(body, first)

    @rule(at=processes, hero_id=ids, method=st.sampled_from(["GET", "HEAD"]), tags=st.tuples(conditions, conditions))
    def read(self, at: int, hero_id: int, method: str, tags: tuple[str | None, str | None]) -> None:
        headers, expected = self.conditional(hero_id, *tags)
        answer = self.processes[at].request(method, f"/heroes/{hero_id}", **headers)
        if expected == CURRENT:
            expected = (304, b"")
        if expected in {None, (304, b"")}:
            assert answer.headers["etag"] == f'"{self.heroes[hero_id].version}"'
        status, body = expected or (200, dump(self.heroes[hero_id].row))
        assert (answer.status, answer.body) == (status, b"" if method == "HEAD" else body)
        assert status == 304 or int(answer.headers["content-length"]) == len(body)

    @rule(at=processes, hero_id=ids, body=changes, tags=st.tuples(conditions, conditions))
    def patch(self, at: int, hero_id: int, body: dict[str, Any], tags: tuple[str | None, str | None]) -> None:
        headers, refused = self.conditional(hero_id, *tags)
        answer = self.processes[at].request("PATCH", f"/heroes/{hero_id}", body, **headers)
        if refused:
            assert (answer.status, answer.body) == refused
            return
        self.change(hero_id, body)
        hero = self.heroes[hero_id]
        assert (answer.status, answer.body) == (200, dump(hero.row))
        assert answer.headers["etag"] == f'"{hero.version}"'

    @rule(hero_id=ids, bodies=st.tuples(changes, changes))
    def patch_on_both_at_once_with_the_same_etag(self, hero_id: int, bodies: tuple[dict[str, Any], ...]) -> None:
        headers, refused = self.conditional(hero_id, "current", None)
        bodies = tuple(body | {"secret_name": "changed"} for body in bodies)
        for process, body in zip(self.processes, bodies, strict=True):
            process.send("PATCH", f"/heroes/{hero_id}", body, **headers)
        answers = [process.receive() for process in self.processes]
        if refused:
            assert [answer[:2] for answer in answers] == [refused] * 2
            return
        changed = [answer.status for answer in answers].index(200)
        assert answers[1 - changed][:2] == STALE
        self.change(hero_id, bodies[changed])
        assert answers[changed].body == dump(self.heroes[hero_id].row)

    @rule(at=processes, hero_id=ids, tags=st.tuples(conditions, conditions))
    def delete(self, at: int, hero_id: int, tags: tuple[str | None, str | None]) -> None:
        headers, refused = self.conditional(hero_id, *tags)
        answer = self.processes[at].request("DELETE", f"/heroes/{hero_id}", **headers)
        assert answer[:2] == (refused or (200, b'{"ok":true}'))
        if not refused:
            del self.heroes[hero_id]
            self.forget(hero_id)

    @rule(hero_id=ids)
    def delete_on_both_at_once(self, hero_id: int) -> None:
        for process in self.processes:
            process.send("DELETE", f"/heroes/{hero_id}")
        answers = [process.receive().status for process in self.processes]
        assert sorted(answers) == ([200, 404] if hero_id in self.heroes else [404, 404])
        self.heroes.pop(hero_id, None)
        self.forget(hero_id)

    @rule(
        at=processes,
        query=filters,
        sort=st.sampled_from(SORTS),
        limit=st.integers(0, 4) | st.integers(0, MAX_LIMIT),
        offset=st.none() | st.integers(0, 4) | st.integers(0, 2 * MAX_LIMIT),
    )
    def read_a_list_to_its_end(self, at: int, query: dict[str, Any], sort: str, limit: int, offset: int | None) -> None:
        rows = select([*self.heroes.values()], query | {"sort": sort})
        start, limit = offset or 0, limit and max(limit, len(rows) // 10)
        sent = {**query, "sort": sort, "limit": limit, "count": "exact"} | (
            {} if offset is None else {"offset": offset}
        )
        target: str | None = f"/heroes/?{urlencode(sent)}"
        while target:
            answer = self.processes[at].request("GET", target)
            assert answer[:2] == (200, dump([hero.row for hero in rows[start : start + limit]]))
            assert answer.headers["x-total-count"] == str(len(rows))
            head = self.processes[1 - at].request("HEAD", target)
            assert head == answer._replace(body=b"")
            start, at, target = start + limit, 1 - at, next_target(answer)
            assert bool(target) == (limit > 0 and start < len(rows))

    @rule(target=walks, query=filters, sort=st.sampled_from(SORTS), limit=st.integers(1, 3))
    def begin_a_walk(self, query: dict[str, Any], sort: str, limit: int) -> Walk:
        rows = select([*self.heroes.values()], query)
        sent = {**query, "sort": sort, "limit": max(limit, len(rows) // 5)}
        walk = Walk(f"/heroes/?{urlencode(sent)}", {hero.id for hero in rows})
        self.open_walks.append(walk)
        return walk

    @rule(at=processes, walk=walks)
    def read_on(self, at: int, walk: Walk) -> None:
        """Others write between the pages of a walk."""
        if walk not in self.open_walks:
            return
        answer = self.processes[at].request("GET", walk.target)
        assert answer.status == 200
        walk.seen += [row["id"] for row in json.loads(answer.body)]
        if (target := next_target(answer)) is not None:
            walk.target = target
            return
        self.open_walks.remove(walk)
        assert [hero_id for hero_id in walk.unchanged if walk.seen.count(hero_id) != 1] == []

    @rule(at=processes, query=filters)
    def export(self, at: int, query: dict[str, Any]) -> None:
        answer = self.processes[at].request("GET", f"/heroes/export?{urlencode(query)}")
        rows = select([*self.heroes.values()], query)
        assert answer[:2] == (200, b"".join(dump(hero.row) + b"\n" for hero in rows))

    @initialize()
    def list_nothing(self) -> None:
        assert self.processes[0].request("GET", "/heroes/")[:2] == (200, b"[]")

    @invariant()
    def both_processes_list_the_heroes(self) -> None:
        next(self.steps)
        rows = [self.heroes[hero_id].row for hero_id in sorted(self.heroes)]
        found, target = [], "/heroes/"
        while target:
            answer = next(self.turns).request("GET", target)
            found += json.loads(answer.body)
            target = next_target(answer) or ""
        assert found == rows


@pytest.fixture
def pair(module_url: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    """Two processes of the service on one database."""
    log = tmp_path_factory.mktemp("services") / "log"
    with ExitStack() as stack:
        services = [stack.enter_context(running_service(module_url, log)) for _ in range(2)]
        pair = [Process(HTTPConnection("127.0.0.1", service.port, timeout=TIMEOUT)) for service in services]
        yield pair
        for process in pair:
            process.connection.close()
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_two_processes_respond_as_the_model_does(module_url: URL, pair: list[Process]) -> None:
    steps = count()
    machine = partial(HeroMachine, module_url, pair, steps)
    run_state_machine_as_test(machine, settings=fuzzed(max(5, EXAMPLES // 5)))  # type: ignore[arg-type]  # calls it only
    requests = sum(process.requests for process in pair)
    print(f"{next(steps)} steps, {requests} requests on {module_url.get_backend_name()}")  # noqa: T201 - for `pytest -s`
