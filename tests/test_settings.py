"""Settings, and the message for an invalid one."""

import re
from pathlib import Path

import pytest

from app.settings import Settings
from tests.support.processes import BIN, run

INVALID = {"DATABASE_URL": "mysql://root:hunter2@h/d", "POOL_SIZE": "hunter2"}
SENTENCES = [
    "DATABASE_URL: the database 'mysql' is not supported: use sqlite:// or postgresql://.",
    "POOL_SIZE: Input should be a valid integer, unable to parse string as an integer.",
]


def test_each_invalid_setting_is_one_sentence_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in INVALID.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as refused:
        Settings.from_environment()
    assert str(refused.value).splitlines() == SENTENCES


@pytest.mark.parametrize("command", ["uvicorn app.main:app", "fastapi run", "alembic current"])
@pytest.mark.slow
def test_invalid_settings_abort_startup_with_their_sentences_and_no_traceback(command: str) -> None:
    result = run(*command.split(), changes=INVALID)
    assert result.returncode != 0
    assert {*SENTENCES} <= {*result.stdout.splitlines()}
    assert "hunter2" not in result.stdout
    assert "Traceback" not in result.stdout


def test_the_default_database_is_a_file_in_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    assert Settings().database_url.database == "database.db"


@pytest.mark.parametrize(
    ("url", "replica_url", "sentence"),
    [
        ("sqlite:///database.db", "sqlite:///replica.db", "only a Postgres server has a replica: SQLite has none"),
        ("sqlite:///database.db", "postgresql://one/heroes", "only a Postgres server has a replica: SQLite has none"),
        ("postgresql://one/heroes", "sqlite:///replica.db", "only a Postgres server has a replica: SQLite has none"),
        (
            "postgresql://one/heroes",
            "postgresql://two,three/heroes?target_session_attrs=prefer-standby",
            "name one host: what is known of one replica does not hold for another",
        ),
    ],
)
def test_a_replica_is_one_postgres_server(
    monkeypatch: pytest.MonkeyPatch, url: str, replica_url: str, sentence: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("DATABASE_REPLICA_URL", replica_url)
    with pytest.raises(SystemExit, match=f"^DATABASE_REPLICA_URL: {sentence}.$"):
        Settings.from_environment()


@pytest.mark.parametrize(
    ("url", "name", "value", "sentence"),
    [
        (
            "sqlite:///database.db",
            "DATABASE_POOLER",
            "transaction",
            "only a Postgres server is behind a pooler: DATABASE_URL is SQLite",
        ),
        (
            "sqlite:///database.db",
            "MIGRATION_DATABASE_URL",
            "postgresql://one/heroes",
            "name the database of DATABASE_URL: one of them is SQLite",
        ),
        (
            "postgresql://one/heroes",
            "MIGRATION_DATABASE_URL",
            "sqlite:///database.db",
            "name the database of DATABASE_URL: one of them is SQLite",
        ),
    ],
)
def test_settings_that_do_not_fit_the_database_are_refused(
    monkeypatch: pytest.MonkeyPatch, url: str, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=f"^{name}: {sentence}.$"):
        Settings.from_environment()


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.org/",
        "https://example.org:443",
        "http://example.org:80",
        "https://bücher.de",
        "https://user@a",
        "https://a\\b",
        "example.org",
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("CORS_ORIGINS", origin)
    with pytest.raises(SystemExit, match="CORS_ORIGINS"):
        Settings.from_environment()


def test_origins_are_in_lower_case_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch) -> None:
    origins = ["https://example.org", "http://example.org:8080", "https://[::1]:8443", "http://xn--bcher-kva.de", "*"]
    monkeypatch.setenv("CORS_ORIGINS", ",".join(origins).upper())
    assert Settings.from_environment().cors_origins == tuple(origins)


@pytest.mark.parametrize(
    "host", ["https://example.org", "example.org:8000", "*", "exa*mple.org", "*example.org", "[x]"]
)
def test_a_host_that_no_request_names_is_refused(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("ALLOWED_HOSTS", f"example.org, {host}")
    sentence = "a host is a name or an address without a port, such as example.org or *.example.org"
    with pytest.raises(SystemExit, match=f"^ALLOWED_HOSTS: {re.escape(sentence)}.$"):
        Settings.from_environment()


@pytest.mark.slow
def test_make_drift_leaves_the_databases_of_the_environment_alone(tmp_path: Path) -> None:
    database = tmp_path / "database.db"
    changes = {"MIGRATION_DATABASE_URL": f"sqlite:///{database}", "DATABASE_POOLER": "transaction"}
    # -o: use the current virtual environment even if it is older than the lock file.
    result = run("make", "-o", ".venv/installed", f"BIN={BIN}", "drift", changes=changes)
    assert result.returncode == 0, result.stdout
    assert not database.exists()
