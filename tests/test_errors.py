"""The form of what the client is told when a request can't be answered."""

import httpx
import pytest


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/heroes/1", 404, {"detail": "Hero not found"}),
        ("GET", "/nowhere/", 404, {"detail": "Not Found"}),
        ("PUT", "/heroes/1", 405, {"detail": "Method Not Allowed"}),
    ],
)
async def test_an_error_is_json_with_a_detail(
    client: httpx.AsyncClient, method: str, path: str, status: int, body: dict[str, str]
) -> None:
    response = await client.request(method, path)
    assert (response.status_code, response.json()) == (status, body)
    assert response.headers["Content-Type"] == "application/json"
