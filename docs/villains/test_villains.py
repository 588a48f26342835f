"""The operations on villains."""

from typing import Any

import httpx
import pytest

DEADPOND = {"name": "Deadpond", "secret_name": "Dive Wilson"}
VILLAINS: list[dict[str, Any]] = [
    {"name": "Loko", "bounty": "10.50", "last_seen": "2026-11-22T12:00:00Z", "status": "caught"},
    {"name": "Ultra", "bounty": "9.75", "last_seen": "2026-11-22T12:00:00.5Z", "nemesis_id": 1},
    {"name": "Magneta", "bounty": "1000000000.01", "last_seen": "2026-11-22T14:00:00+02:00", "status": "reformed"},
    {"name": "Kingpen", "bounty": "9.75", "last_seen": "2025-01-01T00:00:00Z", "nemesis_id": 1},
]
JSON = {"Content-Type": "application/json"}
NEMESIS = {"name": "Deadpond", "age": None, "id": 1}


@pytest.fixture(autouse=True)
async def villains(client: httpx.AsyncClient) -> None:
    """A hero and four villains."""
    await client.post("/heroes/", json=DEADPOND)
    for villain in VILLAINS:
        assert (await client.post("/villains/", json=villain)).status_code == 200


async def ids(client: httpx.AsyncClient, query: str) -> list[int]:
    """Follow `Link` from page to page, two villains each."""
    found, path = [], f"/villains/?limit=2&{query}"
    while path:
        page = await client.get(path)
        assert page.status_code == 200
        found += [villain["id"] for villain in page.json()]
        path = page.links.get("next", {}).get("url", "")
    return found


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("id", [1, 2, 3, 4]),
        ("status", [2, 4, 1, 3]),
        ("-status", [3, 1, 4, 2]),
        ("bounty", [2, 4, 1, 3]),
        ("-bounty", [3, 1, 4, 2]),
        ("last_seen", [4, 1, 3, 2]),
        ("-last_seen", [2, 3, 1, 4]),
        ("nemesis_id", [2, 4, 1, 3]),
        ("-nemesis_id", [4, 2, 3, 1]),
    ],
)
async def test_a_list_is_sorted_over_all_pages(client: httpx.AsyncClient, sort: str, expected: list[int]) -> None:
    assert await ids(client, f"sort={sort}") == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("status=caught", [1]),
        ("min_bounty=10.5", [1, 3]),
        ("seen_since=2026-11-22T13:00:00.25%2B01:00", [2]),
        ("nemesis_id=1&sort=-bounty", [4, 2]),
        ("status=at_large&min_bounty=9.75&seen_since=2026-01-01T00:00:00Z&nemesis_id=1", [2]),
    ],
)
async def test_a_list_is_filtered(client: httpx.AsyncClient, query: str, expected: list[int]) -> None:
    assert await ids(client, query) == expected


async def test_a_list_shows_what_a_villain_is_read_as(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/villains/?count=exact")).json()
    assert listed[2] == {
        "name": "Magneta",
        "status": "reformed",
        "bounty": "1000000000.01",
        "last_seen": "2026-11-22T12:00:00Z",
        "nemesis_id": None,
        "id": 3,
    }
    for villain in listed:
        read = (await client.get(f"/villains/{villain['id']}")).json()
        assert read == {**villain, "nemesis": NEMESIS if villain["nemesis_id"] else None}


async def test_a_patch_changes_what_is_sent(client: httpx.AsyncClient) -> None:
    before = (await client.get("/villains/1")).json()
    assert (await client.patch("/villains/1", json={"status": "at_large"})).json()["status"] == "at_large"
    assert (await client.get("/villains/1")).json() == before | {"status": "at_large"}


async def test_the_current_user_becomes_the_nemesis_in_one_transaction(client: httpx.AsyncClient) -> None:
    challenged = await client.post("/villains/1/challenge", headers={"X-User-Id": "1"})
    assert challenged.json() == (await client.get("/villains/1")).json()
    assert challenged.json()["nemesis"] == NEMESIS


async def test_an_unknown_user_changes_nothing(client: httpx.AsyncClient) -> None:
    assert (await client.post("/villains/1/challenge", headers={"X-User-Id": "2"})).status_code == 401
    assert (await client.get("/villains/1")).json()["nemesis"] is None


async def test_a_villain_of_a_missing_hero_is_409(client: httpx.AsyncClient) -> None:
    assert (await client.post("/villains/", json=VILLAINS[0] | {"nemesis_id": 9})).status_code == 409


async def test_the_villains_of_a_deleted_hero_stay_without_a_nemesis(client: httpx.AsyncClient) -> None:
    await client.delete("/heroes/1")
    assert (await client.get("/villains/2")).json()["nemesis_id"] is None


@pytest.mark.parametrize("invalid", [{"name": ""}, {"bounty": "0.001"}, {"status": "lost"}, {"last_seen": "soon"}])
async def test_an_invalid_villain_is_422(client: httpx.AsyncClient, invalid: dict[str, str]) -> None:
    assert (await client.post("/villains/", json=VILLAINS[0] | invalid)).status_code == 422


async def test_a_missing_villain_is_404(client: httpx.AsyncClient) -> None:
    assert (await client.get("/villains/9")).json() == {"detail": "Villain not found"}


async def test_a_body_that_is_too_large_is_413(client: httpx.AsyncClient) -> None:
    for method, path in [("POST", "/villains/"), ("PATCH", "/villains/1")]:
        for size, status in [(1_000_000, 422), (1_000_001, 413)]:
            response = await client.request(method, path, content=b" " * size, headers=JSON)
            assert response.status_code == status
