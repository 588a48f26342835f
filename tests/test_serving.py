"""The documented ways to start the service."""

import itertools
import json
import re
import sqlite3
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import httpx
import psutil
import pytest
import yaml
from sqlalchemy import URL

from app.pool import CLOSE_TIMEOUT
from bench.databases import sqlite
from bench.servers import CONTENDERS, OURS, Server
from tests.support.heroes import DEADPOND
from tests.support.processes import BIN, ROOT, free_port, render_url, run, server
from tests.support.project import copy_project
from tests.support.service import UVICORN, running_service


@pytest.mark.parametrize("command", ["uvicorn app.main:app", "fastapi dev", "fastapi run"])
@pytest.mark.slow
def test_each_documented_command_serves(sqlite_url: URL, command: str) -> None:
    port = free_port()
    changes = {"DATABASE_URL": render_url(sqlite_url)}
    with server(*command.split(), "--port", str(port), port=port, changes=changes) as client:
        created = client.post("/heroes/", json=DEADPOND)
        assert created.status_code == 200
        assert client.get("/heroes/").json() == [created.json()]
        assert client.get("/docs").status_code == 200


@pytest.mark.slow
def test_two_workers_share_a_new_sqlite_file_from_their_first_request(sqlite_url: URL) -> None:
    port = free_port()
    arguments = ("uvicorn", "app.main:app", "--workers", "2", "--port", str(port))
    with server(*arguments, port=port, changes={"DATABASE_URL": render_url(sqlite_url)}):
        for _ in range(20):  # on a new connection each, so that both workers accept some
            response = httpx.post(f"http://127.0.0.1:{port}/heroes/", json=DEADPOND)
            assert response.status_code == 200


def test_make_run_upgrades_the_file_in_the_working_directory_and_serves_its_rows(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    (project / ".venv").symlink_to(BIN.parent)
    with closing(sqlite3.connect(project / "database.db")) as connection:
        connection.executescript(
            "CREATE TABLE hero (name VARCHAR NOT NULL, age INTEGER, id INTEGER NOT NULL,"
            " secret_name VARCHAR NOT NULL, PRIMARY KEY (id));"
            "INSERT INTO hero VALUES ('Deadpond', 28, 1, 'Dive Wilson')"
        )
    port = free_port()
    # -o: use the current virtual environment even if it is older than the lock file.
    with server("make", "-o", ".venv/installed", "run", port=port, cwd=project, changes={"PORT": str(port)}) as client:
        assert client.get("/heroes/").json() == [{"name": "Deadpond", "age": 28, "id": 1}]


def test_a_virtual_environment_gets_what_is_locked_for_the_tests() -> None:
    # That it can be installed is shown by whoever runs this on a new machine, as `.ci/run` does.
    result = run("make", "--dry-run", "--assume-new=requirements-dev.lock", "install", changes={})
    assert "pip install" in result.stdout
    assert "--require-hashes --requirement requirements-dev.lock" in result.stdout


@pytest.mark.slow
def test_the_benchmarks_start_the_service_with_the_options_of_make_run(tmp_path: Path) -> None:
    with sqlite(tmp_path / "database") as database, Server(CONTENDERS[OURS], database, tmp_path) as service:
        assert " ".join(UVICORN) in " ".join(psutil.Process(service.pid).cmdline())


class TestContainers:
    """What the files say; running them needs a container engine."""

    compose: ClassVar[dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    dockerfile: ClassVar[str] = (ROOT / "Dockerfile").read_text()

    def test_the_image_starts_uvicorn_with_the_options_of_make_run(self) -> None:
        launch = re.search(r"^UVICORN := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        command = re.search(r"^CMD (\[.*\])$", self.dockerfile, re.MULTILINE)
        assert launch
        assert command
        assert json.loads(command[1]) == [*launch[1].split(), "--host", "0.0.0.0"]  # noqa: S104 - inside a container

    def test_the_health_check_of_the_image_uses_no_proxy(self, sqlite_url: URL, tmp_path: Path) -> None:
        check = re.search(r"^HEALTHCHECK .*\n +CMD (\[.*\])$", self.dockerfile, re.MULTILINE)
        assert check
        with running_service(sqlite_url, tmp_path / "log") as service:
            command = [part.replace(":8000", f":{service.port}") for part in json.loads(check[1])]
            proxy = f"http://127.0.0.1:{free_port()}"
            result = run(*command, changes={"http_proxy": proxy, "HTTP_PROXY": proxy})
        assert result.returncode == 0, result.stdout

    def test_the_image_does_not_run_as_root(self) -> None:
        assert re.search(r"^USER (?!root)", self.dockerfile, re.MULTILINE)

    def test_the_images_are_pinned_to_a_patch_release(self) -> None:
        images = [service["image"] for service in self.compose["services"].values()]
        sources = "\n".join((self.dockerfile, self.compose["services"]["pgbouncer"]["build"]["dockerfile_inline"]))
        images = [image for image in images if not image.endswith(":local")]
        images += re.findall(r"^ *FROM (\S+)", sources, re.MULTILINE)
        assert len(images) == 11
        for image in images:
            assert re.search(r":\d+\.\d+(\.\d+)?(-|$)", image), image
            assert image.count(".") == 2 or not image.startswith(("python", "nginx", "citus", "grafana")), image

    def test_our_processes_have_no_privileges_and_a_read_only_file_system(self) -> None:
        services = self.compose["services"]
        ours = {name: service for name, service in services.items() if service["image"].endswith(":local")}
        assert set(ours) == {"migrate", "api", "api-scaled", "citus-migrate", "citus-api", "observed-api", "pgbouncer"}
        for name, service in ours.items():
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
            assert service.get("read_only") is True or name == "pgbouncer", name

    def test_the_image_has_no_installer(self) -> None:
        final = self.dockerfile.rpartition("\nFROM ")[2]
        assert "pip uninstall --yes" in final
        assert "ensurepip" in final
        assert "venv --without-pip" in self.dockerfile

    def test_the_volume_is_the_data_directory_of_this_major_version_of_postgres(self) -> None:
        database = self.compose["services"]["db"]
        major = int(database["image"].removeprefix("postgres:").partition(".")[0])
        assert major >= 18  # older versions use /var/lib/postgresql/data
        (volume,) = database["volumes"]
        assert volume.split(":") == [next(iter(self.compose["volumes"])), "/var/lib/postgresql"]
        assert database["environment"]["PGDATA"] == f"/var/lib/postgresql/{major}/docker"

    def test_the_replica_has_the_version_and_the_data_directory_of_the_primary(self) -> None:
        primary, replica = self.compose["services"]["db"], self.compose["services"]["replica"]
        assert replica["image"] == primary["image"]
        assert replica["environment"]["PGDATA"] == primary["environment"]["PGDATA"]

    def test_only_what_the_proxy_needs_has_the_profile_scale(self) -> None:
        services = self.compose["services"]
        scaled = {name for name, service in services.items() if "scale" in service.get("profiles", [])}
        assert scaled == {"api-scaled", "pgbouncer", "proxy", "replica"}

    def test_the_proxy_finds_the_service_in_the_documented_configuration(self) -> None:
        script = self.compose["services"]["proxy"]["command"][-1]
        replaced = re.search(r"s/(server [^/]+;)/server api-scaled:8000;/", script)
        assert replaced
        assert (ROOT / "docs/nginx.conf").read_text().count(replaced[1]) == 1

    def test_the_health_check_of_the_database_uses_tcp(self) -> None:
        assert "--host=127.0.0.1" in self.compose["services"]["db"]["healthcheck"]["test"]

    def test_the_api_starts_after_the_migration_and_the_migration_after_the_database(self) -> None:
        services = self.compose["services"]
        assert services["migrate"]["depends_on"] == {"db": {"condition": "service_healthy"}}
        assert services["api"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}

    def test_without_a_profile_there_are_three_services(self) -> None:
        services = self.compose["services"]
        assert {name for name in services if "profiles" not in services[name]} == {"db", "migrate", "api"}

    def test_the_profile_citus_starts_the_nodes_then_migrates_then_serves(self) -> None:
        optional = {name for name, service in self.compose["services"].items() if service.get("profiles") == ["citus"]}
        nodes = {"coordinator", "worker-1", "worker-2"}
        assert optional == nodes | {"citus-nodes", "citus-migrate", "citus-api"}
        services = self.compose["services"]
        assert services["citus-nodes"]["depends_on"] == {name: {"condition": "service_healthy"} for name in nodes}
        steps = ["citus-nodes", "citus-migrate", "citus-api"]
        for step, after in itertools.pairwise(steps):
            assert services[after]["depends_on"] == {step: {"condition": "service_completed_successfully"}}

    def test_the_profile_observe_exports_to_its_observer_by_http(self) -> None:
        services = self.compose["services"]
        assert {name for name in services if services[name].get("profiles") == ["observe"]} == {
            "observer",
            "observed-api",
        }
        observed = services["observed-api"]
        assert observed["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://observer:4318"
        assert observed["environment"]["DATABASE_URL"] == services["api"]["environment"]["DATABASE_URL"]
        assert set(observed["depends_on"]) == {"migrate", "observer"}
        assert re.fullmatch(r"[a-z/-]+:\d+\.\d+\.\d+", services["observer"]["image"])

    def test_only_services_of_this_file_are_exported_telemetry_and_only_in_the_profile(self) -> None:
        for name, service in self.compose["services"].items():
            if any(variable.startswith("OTEL_") for variable in service.get("environment", {})):
                assert name == "observed-api"

    def test_the_image_has_the_packages_that_export_telemetry(self) -> None:
        locked = (ROOT / "requirements.lock").read_text()
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert "--requirement requirements.lock" in self.dockerfile
        for package in project["optional-dependencies"]["telemetry"]:
            assert re.search(rf"^{package}==", locked, re.MULTILINE)

    def test_ports_are_published_on_loopback_only(self) -> None:
        ports = [port for service in self.compose["services"].values() for port in service.get("ports", [])]
        assert ports
        assert all(port.startswith("127.0.0.1:") for port in ports)

    @pytest.mark.parametrize("name", ["api", "api-scaled", "citus-api", "observed-api"])
    def test_the_stop_grace_period_exceeds_the_graceful_shutdown(self, name: str) -> None:
        limit = re.search(r'"--timeout-graceful-shutdown", "(\d+)"', self.dockerfile)
        assert limit
        api = self.compose["services"][name]
        shutdown = api["environment"]["SHUTDOWN_DELAY"] + int(limit[1]) + CLOSE_TIMEOUT
        assert int(api["stop_grace_period"].removesuffix("s")) > shutdown
