"""ETags, If-None-Match and If-Match."""

import asyncio

import httpx
import pytest
from sqlalchemy import URL
from starlette.datastructures import Headers

from app.etags import MAX_ETAGS, PreconditionFailed
from tests.support.heroes import DEADPOND
from tests.support.sql import execute

HERO = DEADPOND | {"age": 30}
WRITES = [("PATCH", {"age": 40}), ("PATCH", {}), ("DELETE", None)]

# Headers, where the current ETag is "2": those that name it, those that don't, and what is no list of ETags.
CURRENT = ['"2"', "*", '"1", "2"']
OTHERS = ['"1"', '"02"', '" 2"', '"2x"', '"*"', "", f'"{"9" * 40}"', '"9223372036854775808"']
MALFORMED = [
    *("2", '"2', "W/2", "x", "**", 'w/"2"', 'x"2"', '"2"x'),
    *('"1" "2"', '"a b"2"c d"', 'garbage "2"', '"2", garbage'),
]


@pytest.fixture
async def path(client: httpx.AsyncClient) -> str:
    """The path of a hero whose ETag is "2"."""
    created = await client.post("/heroes/", json=HERO)
    path = str(created.headers["Location"])
    changed = await client.patch(path, json={"age": 31})
    assert (created.headers["ETag"], changed.headers["ETag"]) == ('"1"', '"2"')
    return path


class TestVersions:
    async def test_every_response_with_one_hero_has_an_etag(self, client: httpx.AsyncClient, path: str) -> None:
        for method, body in (("GET", None), ("HEAD", None), ("PATCH", {})):
            assert (await client.request(method, path, json=body)).headers["ETag"] == '"2"'

    async def test_the_etag_changes_with_every_update_and_with_nothing_else(
        self, client: httpx.AsyncClient, path: str
    ) -> None:
        await client.get(path)
        await client.patch(path, json={})
        await client.patch(path, json={"age": -1})
        assert (await client.get(path)).headers["ETag"] == '"2"'
        for count, change in enumerate(({"name": "x"}, {"age": None}, {"secret_name": "y"}), start=3):
            assert (await client.patch(path, json=change)).headers["ETag"] == f'"{count}"'

    async def test_the_version_is_not_in_the_body(self, client: httpx.AsyncClient, path: str) -> None:
        assert "version" not in (await client.get(path)).json()


class TestIfNoneMatch:
    async def test_a_matching_etag_is_304(self, client: httpx.AsyncClient, path: str) -> None:
        for header in (*CURRENT, 'W/"2"', '"1",W/"2" , "x"', ', ,"2",', ' "2" ', '"a,b", "2"', '"é", "2"'):
            for method in ("GET", "HEAD"):
                response = await client.request(method, path, headers={b"If-None-Match": header.encode("latin-1")})
                assert (response.status_code, response.content) == (304, b""), header
                assert response.headers["ETag"] == '"2"'
                assert "Content-Type" not in response.headers

    async def test_an_etag_that_does_not_match_is_200(self, client: httpx.AsyncClient, path: str) -> None:
        for header in (*OTHERS, *MALFORMED, 'W/"1"', 'w"2'):
            response = await client.get(path, headers={"If-None-Match": header})
            assert (response.status_code, response.json()["id"]) == (200, 1), header

    async def test_repeated_headers_are_one_list(self, client: httpx.AsyncClient, path: str) -> None:
        response = await client.get(path, headers=[("If-None-Match", '"1"'), ("If-None-Match", '"2"')])
        assert response.status_code == 304

    async def test_a_missing_hero_is_404(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/heroes/9", headers={"If-None-Match": "*"})).status_code == 404

    async def test_a_write_with_the_current_etag_is_412(self, client: httpx.AsyncClient, path: str) -> None:
        for header in (*CURRENT, 'W/"2"'):
            for method, body in WRITES:
                response = await client.request(method, path, json=body, headers={"If-None-Match": header})
                assert response.status_code == 412, (header, method, body)
                assert response.json() == {"detail": "An ETag in If-None-Match matches the resource's current version."}
        assert (await client.get(path)).json()["age"] == 31

    async def test_a_write_without_the_current_etag_succeeds(self, client: httpx.AsyncClient, path: str) -> None:
        for header in (*OTHERS, 'W/"3"'):
            response = await client.patch(path, json={}, headers={"If-None-Match": header})
            assert response.status_code == 200, header
        assert (await client.patch(path, json={"name": "x"}, headers={"If-None-Match": '"1"'})).status_code == 200
        assert (await client.delete(path, headers={"If-None-Match": '"2"'})).status_code == 200

    async def test_a_write_with_a_list_longer_than_the_limit_is_412(self, client: httpx.AsyncClient, path: str) -> None:
        others = ",".join(f'"{number}"' for number in range(3, MAX_ETAGS + 4))
        assert (await client.delete(path, headers={"If-None-Match": others})).status_code == 412

    async def test_a_list_as_long_as_the_limit_is_accepted(self, client: httpx.AsyncClient, path: str) -> None:
        others = ",".join(f'"{number}"' for number in range(1_000, 1_000 + MAX_ETAGS))
        assert (await client.delete(path, headers={"If-None-Match": others})).status_code == 200

    async def test_its_412_is_not_blamed_on_an_if_match_that_holds(self, client: httpx.AsyncClient, path: str) -> None:
        headers = {"If-Match": '"2"', "If-None-Match": "*"}
        for method, body in WRITES:
            response = await client.request(method, path, json=body, headers=headers)
            assert response.status_code == 412
            assert response.json() == {"detail": "An ETag in If-None-Match matches the resource's current version."}

    async def test_a_write_to_a_missing_hero_is_404(self, client: httpx.AsyncClient) -> None:
        for method in ("PATCH", "DELETE"):
            response = await client.request(method, "/heroes/9", json={"age": 1}, headers={"If-None-Match": "*"})
            assert response.status_code == 404


class TestIfMatch:
    async def test_a_patch_with_the_current_etag_succeeds(self, client: httpx.AsyncClient, path: str) -> None:
        for version, header in enumerate(['"2"', "*", '"1", "4"', '"x",,"5"', 'W/"1","6"'], start=2):
            response = await client.patch(path, json={"age": version}, headers={"If-Match": header})
            assert (response.status_code, response.json()["age"]) == (200, version), header
            assert response.headers["ETag"] == f'"{version + 1}"'

    async def test_a_write_without_the_current_etag_is_412(self, client: httpx.AsyncClient, path: str) -> None:
        for header in (*OTHERS, *MALFORMED, 'W/"2"', '"-2"'):
            for method, body in WRITES:
                response = await client.request(method, path, json=body, headers={"If-Match": header})
                assert response.status_code == 412, (header, method, body)
                assert response.json() == {
                    "detail": "The resource has changed: no ETag in If-Match matches its current version."
                }
        assert (await client.get(path)).json()["age"] == 31

    async def test_a_read_without_the_current_etag_is_412(self, client: httpx.AsyncClient, path: str) -> None:
        for header in (*OTHERS, *MALFORMED, 'W/"2"'):
            for method in ("GET", "HEAD"):
                headers = {"If-Match": header, "If-None-Match": '"2"'}  # If-Match comes first
                assert (await client.request(method, path, headers=headers)).status_code == 412, header

    async def test_a_read_with_the_current_etag_succeeds(self, client: httpx.AsyncClient, path: str) -> None:
        for header in CURRENT:
            assert (await client.get(path, headers={"If-Match": header})).json()["id"] == 1
            assert (await client.head(path, headers={"If-Match": header})).status_code == 200
            headers = {"If-Match": header, "If-None-Match": '"2"'}
            assert (await client.get(path, headers=headers)).status_code == 304

    async def test_a_412_names_if_match_first(self, client: httpx.AsyncClient, path: str) -> None:
        for excluded in ('"2"', '"8"', "*"):
            headers = {"If-Match": '"9"', "If-None-Match": excluded}
            response = await client.patch(path, json={"age": 1}, headers=headers)
            assert response.status_code == 412
            assert "no ETag in If-Match" in response.json()["detail"]

    async def test_a_version_may_have_19_digits(self, client: httpx.AsyncClient, url: URL, path: str) -> None:
        await asyncio.to_thread(execute, url, f"UPDATE hero SET version = {2**63 - 2}")
        headers = {"If-Match": f'"{2**63 - 2}"'}
        assert (await client.get(path, headers=headers)).status_code == 200
        changed = await client.patch(path, json={"age": 3}, headers=headers)
        assert (changed.status_code, changed.headers["ETag"]) == (200, f'"{2**63 - 1}"')
        assert (await client.delete(path, headers={"If-Match": f'"{2**63}"'})).status_code == 412

    async def test_the_last_version_can_be_named(self, client: httpx.AsyncClient, url: URL, path: str) -> None:
        await asyncio.to_thread(execute, url, f"UPDATE hero SET version = {2**63 - 1}")
        assert (await client.get(path, headers={"If-Match": f'"{2**63 - 1}"'})).status_code == 200

    async def test_a_delete_with_the_current_etag_succeeds(self, client: httpx.AsyncClient, path: str) -> None:
        assert (await client.delete(path, headers={"If-Match": '"2"'})).json() == {"ok": True}
        assert (await client.delete(path, headers={"If-Match": '"2"'})).status_code == 404

    async def test_a_missing_hero_is_404_whatever_the_header(self, client: httpx.AsyncClient) -> None:
        for header in ("*", '"1"', "garbage"):
            for method in ("GET", "PATCH", "DELETE"):
                response = await client.request(method, "/heroes/9", json={"age": 1}, headers={"If-Match": header})
                assert response.status_code == 404

    async def test_a_list_longer_than_the_limit_matches_nothing(self, client: httpx.AsyncClient, path: str) -> None:
        for tags in (",".join(f'"{number}"' for number in range(2, 5_000)), '"3",' * 8_000):  # a head has 32 KB
            assert (await client.patch(path, json={"age": 1}, headers={"If-Match": tags})).status_code == 412
        tags = ",".join(f'"{number}"' for number in range(1, MAX_ETAGS + 1))
        assert (await client.patch(path, json={"age": 1}, headers={"If-Match": tags})).status_code == 200

    async def test_a_hostile_header_is_412(self, client: httpx.AsyncClient, path: str) -> None:
        for header in (" , " * 10_000, '"' * 30_001, 'W/"' * 10_000, '",' * 15_000):
            assert (await client.patch(path, json={}, headers={"If-Match": header})).status_code == 412


def test_a_412_names_if_match_also_if_the_row_has_got_that_version_in_the_meantime() -> None:
    assert "no ETag in If-Match" in PreconditionFailed(2, Headers({"If-Match": '"2"'})).detail


async def test_one_of_fifty_patches_with_the_same_etag_succeeds(client: httpx.AsyncClient) -> None:
    path = (await client.post("/heroes/", json=HERO)).headers["Location"]
    responses = await asyncio.gather(
        *(client.patch(path, json={"age": age}, headers={"If-Match": '"1"'}) for age in range(50))
    )
    assert sorted(response.status_code for response in responses) == [200, *[412] * 49]
    (winner,) = [response for response in responses if response.status_code == 200]
    current = await client.get(path)
    assert (current.content, current.headers["ETag"]) == (winner.content, '"2"')


async def test_one_of_several_patches_and_deletes_with_the_same_etag_succeeds(client: httpx.AsyncClient) -> None:
    for _ in range(10):
        path = (await client.post("/heroes/", json=HERO)).headers["Location"]
        headers = {"If-Match": '"1"'}
        responses = await asyncio.gather(
            client.patch(path, json={"age": 1}, headers=headers),
            client.delete(path, headers=headers),
            client.patch(path, json={"age": 2}, headers=headers),
            client.delete(path, headers=headers),
        )
        assert [response.status_code for response in responses].count(200) == 1
        assert {response.status_code for response in responses} <= {200, 404, 412}
