"""Settings: read from environment variables of the same names, in upper case."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import URL

from app.log_config import parse_levels
from app.security import Token, parse_tokens, read_tokens
from app.urls import is_sqlite, parse_url, split_hosts

# Both databases take timeouts as milliseconds in 32 bits.
Seconds = Annotated[float, Field(ge=0.001, le=2_147_483)]
ORIGIN = re.compile(r"https?://[^/?#\s*]+")
HOST = re.compile(r"(\*\.)?[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]")


def split(text: object) -> object:
    """Split a comma-separated value."""
    return [word.strip() for word in text.split(",") if word.strip()] if isinstance(text, str) else text


def check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse an origin that no browser sends.

    Raises:
        ValueError: one is not of the form https://example.org.
    """
    for origin in origins:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise ValueError("an origin is a scheme and a host without a path, such as https://example.org")
    return origins


def check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse a host that no request names.

    Raises:
        ValueError: one is not of the form example.org, *.example.org or [::1].
    """
    for host in hosts:
        if not HOST.fullmatch(host):
            raise ValueError("a host is a name or an address without a port, such as example.org or *.example.org")
    return hosts


class Settings(BaseSettings):
    """The settings of a process, read once."""

    model_config = SettingsConfigDict(frozen=True, arbitrary_types_allowed=True)

    database_url: Annotated[URL, NoDecode, BeforeValidator(parse_url)] = Field(
        default="sqlite:///database.db",
        validate_default=True,
        description="The database: a SQLite file or a Postgres server.",
    )
    database_pooler: Literal["transaction"] | None = Field(
        default=None,
        description="`transaction`: `DATABASE_URL` leads to a pooler in that mode, such as PgBouncer. The connections"
        " to the replica are used in the same way.",
    )
    database_replica_url: Annotated[URL | None, NoDecode, BeforeValidator(parse_url)] = Field(
        default=None,
        validate_default=False,
        description="A streaming replica of it, which GET and HEAD requests read from.",
    )
    replica_max_lag: int = Field(
        default=5,
        ge=3,
        le=300,
        description="Seconds that the replica may be behind. If it is more, the primary is read from.",
    )
    migration_database_url: Annotated[URL | None, NoDecode, BeforeValidator(parse_url)] = Field(
        default=None,
        validate_default=False,
        description="The database for `alembic`, instead of `DATABASE_URL`: the server itself, if that is a pooler's.",
    )
    pool_size: int = Field(
        default=10,
        ge=1,
        le=1000,
        description="Connections of each process for requests: on SQLite for those that read, on Postgres half of them"
        " for those that write.",
    )
    queue_size: int = Field(
        default=1024,
        ge=0,
        description="Requests of each process that may wait for a connection. Any more get 503 at once.",
    )
    queue_timeout: Seconds = Field(
        default=5,
        description="Seconds that a request waits for a connection before it gets 503.",
    )
    lock_timeout: Seconds = Field(
        default=5,
        description="Seconds that a statement waits for each lock.",
    )
    statement_timeout: Seconds = Field(
        default=10,
        description="Seconds that a statement may run on Postgres.",
    )
    migration_timeout: Seconds = Field(
        default=600,
        description="Seconds that `alembic upgrade` waits for another upgrade, and retries when blocked by a lock.",
    )
    migration_lock_timeout: Seconds = Field(
        default=1,
        description="Seconds that one try of an upgrade waits for a lock; requests queue behind it for as long.",
    )
    migration_statement_timeout: Seconds = Field(
        default=15,
        description="Seconds that a statement of an upgrade may run on Postgres, and keep its lock.",
    )
    sqlite_synchronous: Literal["NORMAL", "FULL"] = Field(
        default="NORMAL",
        description="`FULL`: committed writes on SQLite survive a power failure too, at the cost of an fsync each.",
    )
    shutdown_delay: float = Field(
        default=0,
        ge=0,
        le=3600,
        description="Seconds from SIGTERM to the shutdown: `/readyz` is 503, and requests are still served.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split), AfterValidator(check_origins)] = Field(
        default=(),
        description="Origins whose pages may use the API in a browser, separated by commas; `*` allows all.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="`json`: each line of the log is a JSON object.",
    )
    log_level: Annotated[Mapping[str, str], NoDecode, BeforeValidator(parse_levels)] = Field(
        default="INFO",
        validate_default=True,
        description="The lowest level that is logged, and after it those of single loggers: `INFO,app.sql=DEBUG`.",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split), AfterValidator(check_hosts)] = Field(
        default=(),
        description="Hosts that a request may name in `Host`, separated by commas, such as `example.org` and"
        " `*.example.org`; by default any.",
    )
    tokens: Annotated[tuple[Token, ...], NoDecode, BeforeValidator(parse_tokens)] = Field(
        default=(),
        repr=False,
        description="Bearer tokens that clients need, separated by commas, each as `name:scopes:hash`; by default"
        " they need none.",
    )
    tokens_file: Annotated[tuple[Token, ...], NoDecode, BeforeValidator(read_tokens)] = Field(
        default=(),
        repr=False,
        description="A file with more of them, one on each line.",
    )
    docs_enabled: bool = Field(
        default=True,
        description="`false`: `/docs` and `/openapi.json` are 404.",
    )

    @field_validator("tokens_file")
    @classmethod
    def check_tokens(cls, tokens: tuple[Token, ...], info: ValidationInfo) -> tuple[Token, ...]:
        """Refuse a token that is in both.

        Raises:
            ValueError: one is.
        """
        if {token.digest for token in tokens} & {token.digest for token in info.data.get("tokens", ())}:
            raise ValueError("a token in it is in TOKENS too")
        return tokens

    @field_validator("database_replica_url")
    @classmethod
    def check_replica(cls, url: URL | None, info: ValidationInfo) -> URL | None:
        """Refuse what is not one replica of a Postgres server.

        Raises:
            ValueError: it is SQLite, or several servers.
        """
        if url and any(is_sqlite(other) for other in (url, info.data.get("database_url", url))):
            raise ValueError("only a Postgres server has a replica: SQLite has none")
        if url and len(split_hosts(url.difference_update_query(["target_session_attrs"]))) > 1:
            raise ValueError("name one host: what is known of one replica does not hold for another")
        return url

    @field_validator("database_pooler")
    @classmethod
    def check_pooler(cls, pooler: str | None, info: ValidationInfo) -> str | None:
        """Refuse a pooler in front of SQLite.

        Raises:
            ValueError: the database is SQLite.
        """
        url = info.data.get("database_url")
        if pooler and url and is_sqlite(url):
            raise ValueError("only a Postgres server is behind a pooler: DATABASE_URL is SQLite")
        return pooler

    @field_validator("migration_database_url")
    @classmethod
    def check_migration_url(cls, url: URL | None, info: ValidationInfo) -> URL | None:
        """Refuse a database of another kind than that of the service.

        Raises:
            ValueError: one is SQLite, the other Postgres.
        """
        if url and is_sqlite(url) is not is_sqlite(info.data.get("database_url", url)):
            raise ValueError("name the database of DATABASE_URL: one of them is SQLite")
        return url

    @classmethod
    def from_environment(cls) -> Self:
        """Read the environment, or exit with one sentence for each invalid variable.

        Raises:
            SystemExit: a variable is invalid. The sentence does not repeat the value: a URL contains a password.
        """
        try:
            return cls()
        except ValidationError as error:
            sentences = (
                f"{str(invalid['loc'][0]).upper()}: {invalid['msg'].removeprefix('Value error, ')}."
                for invalid in error.errors()
            )
            raise SystemExit("\n".join(sentences)) from None
