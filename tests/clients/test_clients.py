"""Generated clients compile and work with the service: `make clients`, which needs Node."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import URL

from tests.support.processes import free_port, render_url, server

CLIENTS = Path(__file__).parent
pytestmark = pytest.mark.node


@pytest.fixture
def service(sqlite_url: URL) -> Iterator[httpx.Client]:
    """A client for a server of its own."""
    port = free_port()
    with server(
        "uvicorn", "app.main:app", "--port", str(port), port=port, changes={"DATABASE_URL": render_url(sqlite_url)}
    ) as client:
        yield client


@pytest.fixture
def folder(service: httpx.Client, tmp_path: Path) -> Path:
    """A folder with the sessions and the schema."""
    shutil.copytree(CLIENTS, tmp_path / "clients")
    (tmp_path / "clients/openapi.json").write_bytes(service.get("/openapi.json").content)
    return tmp_path / "clients"


def run_in(folder: Path, *commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), cwd=folder, check=True)


def test_a_generated_python_client_passes_its_type_check_and_works(service: httpx.Client, folder: Path) -> None:
    run_in(
        folder,
        "python3 -m venv .venv",
        ".venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock",
        ".venv/bin/openapi-python-client generate --path openapi.json --meta none --output-path heroes_client",
        # silent: the generator's own template does not pass strict checks
        ".venv/bin/mypy --follow-imports silent --disallow-untyped-calls session.py",
        f".venv/bin/python session.py {service.base_url}",
    )


def test_a_generated_typescript_client_passes_its_type_check_and_works(service: httpx.Client, folder: Path) -> None:
    run_in(
        folder,
        "npm ci --no-audit --no-fund",
        "npx openapi-typescript openapi.json --output schema.d.ts",
        "npx tsc",
        f"node session.js {service.base_url}",
    )
