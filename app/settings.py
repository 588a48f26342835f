"""Settings: read from environment variables of the same names, in upper case."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL

from app.log_config import parse_levels
from app.security import Token, parse_tokens, read_tokens
from app.urls import is_sqlite, parse_url, split_hosts

# As browsers send it: in ASCII, and without the default port.
ORIGIN = re.compile(r"\*|(?!http://.*:80$|https://.*:443$)https?://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]+)?")
HOST = re.compile(r"(\*\.)?[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]")


def from_text(parse: Callable[[str], Any]) -> BeforeValidator:
    """Parse a setting where it is text, as in the environment. Code gives what is parsed already."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def split(text: str) -> list[str]:
    """Split a comma-separated value."""
    return [word.strip() for word in text.split(",") if word.strip()]


def each_matches(pattern: re.Pattern[str], form: str) -> AfterValidator:
    """Refuse a value of which a part does not match: `form` says what matches."""

    def check(parts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(pattern.fullmatch, parts)):
            raise ValueError(form)
        return parts

    return AfterValidator(check)


# Both databases take timeouts as milliseconds in 32 bits.
Seconds = Annotated[float, Field(ge=0.001, le=2_147_483)]
DatabaseURL = Annotated[URL, BeforeValidator(parse_url)]
Origins = Annotated[
    tuple[str, ...],
    from_text(lambda text: split(text.lower())),
    each_matches(
        ORIGIN,
        "an origin is a scheme and a host in ASCII, without a path, a user or the default port, such as https://example.org",
    ),
]
Hosts = Annotated[
    tuple[str, ...],
    from_text(split),
    each_matches(HOST, "a host is a name or an address without a port, such as example.org or *.example.org"),
]


class Settings(BaseSettings):
    """The settings of a process, read once."""

    model_config = SettingsConfigDict(frozen=True, arbitrary_types_allowed=True, enable_decoding=False)

    database_url: DatabaseURL = Field(default="sqlite:///database.db", validate_default=True)
    """The database: a SQLite file or a Postgres server."""
    database_pooler: Literal["transaction"] | None = None
    """`transaction`: `DATABASE_URL` leads to a pooler in that mode, such as PgBouncer. The connections to the replica
    are used in the same way."""
    database_replica_url: DatabaseURL | None = None
    """A streaming replica of it, which GET and HEAD requests read from."""
    replica_max_lag: int = Field(default=5, ge=3, le=300)
    """Seconds that the replica may be behind. If it is more, the primary is read from."""
    migration_database_url: DatabaseURL | None = None
    """The database for `alembic`, instead of `DATABASE_URL`: the server itself, if that is a pooler's."""
    pool_size: int = Field(default=10, ge=1, le=1000)
    """Connections of each process for requests: on SQLite for those that read, on Postgres half of them for those that
    write."""
    queue_size: int = Field(default=1024, ge=0)
    """Requests of each process that may wait for a connection to read, as many to write, and as many exports. Any more
    get 503 at once."""
    queue_timeout: Seconds = 5
    """Seconds that a request waits for a connection before it gets 503."""
    lock_timeout: Seconds = 5
    """Seconds that a statement waits for each lock."""
    statement_timeout: Seconds = 10
    """Seconds that a statement may run on Postgres."""
    migration_timeout: Seconds = 600
    """Seconds that `alembic upgrade` waits for another upgrade, and retries when blocked by a lock."""
    migration_lock_timeout: Seconds = 2
    """Seconds that one try of an upgrade waits for a lock; requests queue behind it for as long."""
    migration_statement_timeout: Seconds = 15
    """Seconds that a statement of an upgrade may run on Postgres, and keep its lock."""
    sqlite_synchronous: Literal["NORMAL", "FULL"] = "NORMAL"
    """`FULL`: committed writes on SQLite survive a power failure too, at the cost of an fsync each."""
    shutdown_delay: float = Field(default=0, ge=0, le=3600)
    """Seconds from SIGTERM to the shutdown: `/readyz` is 503, and requests are still served."""
    cors_origins: Origins = ()
    """Origins whose pages may use the API in a browser, separated by commas; `*` allows all."""
    log_format: Literal["text", "json"] = "text"
    """`json`: each line of the log is a JSON object."""
    log_level: Annotated[Mapping[str, str], from_text(parse_levels)] = Field(default="INFO", validate_default=True)
    """The lowest level that is logged, and after it those of single loggers: `INFO,app.sql=DEBUG`."""
    allowed_hosts: Hosts = ()
    """Hosts that a request may name in `Host`, separated by commas, such as `example.org` and `*.example.org`; by
    default any."""
    tokens: Annotated[tuple[Token, ...], from_text(parse_tokens)] = Field(default=(), repr=False)
    """Bearer tokens that clients need, separated by commas, each as `name:scopes:hash`; by default they need none."""
    tokens_file: Annotated[tuple[Token, ...], from_text(read_tokens)] = Field(default=(), repr=False)
    """A file with more of them, one on each line."""
    docs_enabled: bool = True
    """`false`: `/docs` and `/openapi.json` are 404."""

    @field_validator("tokens_file")
    @classmethod
    def check_tokens(cls, tokens: tuple[Token, ...], info: ValidationInfo) -> tuple[Token, ...]:
        """Refuse a token that is in TOKENS too."""
        if {token.digest for token in tokens} & {token.digest for token in info.data.get("tokens", ())}:
            raise ValueError("a token in it is in TOKENS too")
        return tokens

    @field_validator("database_replica_url")
    @classmethod
    def check_replica(cls, url: URL | None, info: ValidationInfo) -> URL | None:
        """Refuse what is not one replica of a Postgres server."""
        if url and any(is_sqlite(other) for other in (url, info.data.get("database_url", url))):
            raise ValueError("only a Postgres server has a replica: SQLite has none")
        if url and len(split_hosts(url.difference_update_query(["target_session_attrs"]))) > 1:
            raise ValueError("name one host: what is known of one replica does not hold for another")
        return url

    @field_validator("database_pooler")
    @classmethod
    def check_pooler(cls, pooler: str | None, info: ValidationInfo) -> str | None:
        """Refuse a pooler in front of SQLite."""
        url = info.data.get("database_url")
        if pooler and url and is_sqlite(url):
            raise ValueError("only a Postgres server is behind a pooler: DATABASE_URL is SQLite")
        return pooler

    @field_validator("migration_database_url")
    @classmethod
    def check_migration_url(cls, url: URL | None, info: ValidationInfo) -> URL | None:
        """Refuse a database of another kind than that of the service."""
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
