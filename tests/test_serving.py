"""The ways to start the service that the README names."""

import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import yaml
from sqlalchemy import URL

from tests.processes import BIN, ROOT, free_port, run, server, spell

HERO = {"name": "Deadpond", "secret_name": "Dive Wilson"}


def assert_it_serves(client: httpx.Client) -> None:
    created = client.post("/heroes/", json=HERO)
    assert created.status_code == 200
    assert client.get("/heroes/").json() == [created.json()]
    assert client.get("/docs").status_code == 200


@pytest.mark.parametrize(
    "arguments",
    [
        ("uvicorn", "app.main:app"),
        ("uvicorn", "app.main:app", "--workers", "2"),
        ("fastapi", "dev"),
        ("fastapi", "run"),
    ],
    ids=" ".join,
)
@pytest.mark.slow
def test_a_command_serves(url: URL, arguments: tuple[str, ...]) -> None:
    port = free_port()
    with server(*arguments, "--port", str(port), port=port, changes={"DATABASE_URL": spell(url)}) as client:
        assert_it_serves(client)


def test_two_workers_share_a_new_sqlite_file_from_their_first_request(databases: Any) -> None:
    url = databases.migrated()
    port = free_port()
    arguments = ("uvicorn", "app.main:app", "--workers", "2", "--port", str(port))
    with server(*arguments, port=port, changes={"DATABASE_URL": spell(url)}):
        for _ in range(20):  # a new connection each, so that both workers get some
            answer = httpx.post(f"http://127.0.0.1:{port}/heroes/", json=HERO)
            assert answer.status_code == 200
    databases.drop(url)


def test_make_run_migrates_the_file_of_the_working_directory_and_serves_its_rows(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(".*", "*.db*"))
    (project / ".venv").symlink_to(BIN.parent)
    with closing(sqlite3.connect(project / "database.db")) as connection:
        connection.executescript(
            "CREATE TABLE hero (name VARCHAR NOT NULL, age INTEGER, id INTEGER NOT NULL,"
            " secret_name VARCHAR NOT NULL, PRIMARY KEY (id));"
            "INSERT INTO hero VALUES ('Deadpond', 28, 1, 'Dive Wilson')"
        )
    port = free_port()
    # -o: the virtual environment is the one of this run, whatever its age.
    with server("make", "-o", ".venv/installed", "run", port=port, cwd=project, changes={"PORT": str(port)}) as client:
        assert client.get("/heroes/").json() == [{"name": "Deadpond", "age": 28, "id": 1}]


@pytest.mark.slow
def test_a_fresh_copy_installs_what_it_needs_and_serves(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", "*.db*"))
    installed = run("make", "install", cwd=project, changes={}, patience=600)
    assert installed.returncode == 0, installed.stdout
    port = free_port()
    with server("make", "run", port=port, cwd=project, changes={"PORT": str(port)}) as client:
        assert_it_serves(client)
    assert (project / "database.db").exists()


class TestContainers:
    """What is read in the files; that they run is shown with a Docker engine, not here."""

    compose: ClassVar[dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    dockerfile: ClassVar[str] = (ROOT / "Dockerfile").read_text()

    def test_the_launch_configuration_is_that_of_make_run(self) -> None:
        launch = re.search(r"^UVICORN := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        command = re.search(r"^CMD (\[.*\])$", self.dockerfile, re.MULTILINE)
        assert launch
        assert command
        assert json.loads(command[1]) == [*launch[1].split(), "--host", "0.0.0.0"]  # noqa: S104 - inside a container

    def test_the_image_runs_as_nobody_in_particular(self) -> None:
        assert re.search(r"^USER (?!root)", self.dockerfile, re.MULTILINE)

    def test_the_volume_is_where_this_major_of_postgres_keeps_its_data(self) -> None:
        database = self.compose["services"]["db"]
        major = int(database["image"].removeprefix("postgres:"))
        assert major >= 18  # before, it was /var/lib/postgresql/data
        (volume,) = database["volumes"]
        assert volume.split(":") == [next(iter(self.compose["volumes"])), "/var/lib/postgresql"]
        assert database["environment"]["PGDATA"] == f"/var/lib/postgresql/{major}/docker"

    def test_the_database_is_healthy_only_when_it_answers_by_tcp(self) -> None:
        assert "--host=127.0.0.1" in self.compose["services"]["db"]["healthcheck"]["test"]

    def test_the_api_starts_after_the_migration_and_the_migration_after_the_database(self) -> None:
        services = self.compose["services"]
        assert services["migrate"]["depends_on"] == {"db": {"condition": "service_healthy"}}
        assert services["api"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}

    def test_ports_are_published_on_loopback_alone(self) -> None:
        ports = [port for service in self.compose["services"].values() for port in service.get("ports", [])]
        assert ports
        assert all(port.startswith("127.0.0.1:") for port in ports)

    def test_a_container_is_stopped_later_than_the_server_stops_itself(self) -> None:
        limit = re.search(r'"--timeout-graceful-shutdown", "(\d+)"', self.dockerfile)
        assert limit
        assert int(self.compose["services"]["api"]["stop_grace_period"].removesuffix("s")) > int(limit[1])
