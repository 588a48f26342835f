"""What operators set, by environment variables of the same names in capitals."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import URL

from app.urls import parse_url

# The databases count milliseconds, in 32 bits.
Seconds = Annotated[float, Field(ge=0.001, le=2_147_483)]
ORIGIN = re.compile(r"https?://[^/?#\s*]+")


def split(text: object) -> object:
    """Take the words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()] if isinstance(text, str) else text


def check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what no browser sends as an origin.

    Raises:
        ValueError: one is not like https://example.org.
    """
    for origin in origins:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise ValueError("an origin is a scheme and a host, such as https://example.org, without a path")
    return origins


class Settings(BaseSettings):
    """The settings of one process, read once and never changed."""

    model_config = SettingsConfigDict(frozen=True, arbitrary_types_allowed=True)

    database_url: Annotated[URL, NoDecode, BeforeValidator(parse_url)] = Field(
        default="sqlite:///database.db",
        validate_default=True,
        description="The database: a SQLite file or a Postgres server.",
    )
    pool_size: int = Field(
        default=10,
        ge=1,
        le=1000,
        description="Connections of one process for requests. On SQLite, for those that read.",
    )
    queue_size: int = Field(
        default=1024,
        ge=0,
        description="Requests of one process that wait for a connection. One more gets 503 at once.",
    )
    queue_timeout: Seconds = Field(
        default=5,
        description="Seconds that a request waits for a connection, until it gets 503.",
    )
    lock_timeout: Seconds = Field(
        default=5,
        description="Seconds that a statement waits for a lock that another one holds.",
    )
    statement_timeout: Seconds = Field(
        default=10,
        description="Seconds that one statement may take on Postgres.",
    )
    migration_timeout: Seconds = Field(
        default=600,
        description="Seconds that `alembic upgrade` waits for another one, and for locks that others hold.",
    )
    migration_lock_timeout: Seconds = Field(
        default=1,
        description="Seconds that it waits at a time, while requests queue up behind it.",
    )
    migration_statement_timeout: Seconds = Field(
        default=15,
        description="Seconds that one of its statements may keep a lock on Postgres.",
    )
    sqlite_synchronous: Literal["NORMAL", "FULL"] = Field(
        default="NORMAL",
        description="FULL: a write on SQLite survives a power cut too, at the price of an fsync.",
    )

    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split), AfterValidator(check_origins)] = Field(
        default=(),
        description="Origins whose pages in a browser may use the API, with commas between them; `*` is all.",
    )

    @classmethod
    def from_environment(cls) -> Self:
        """Read the environment, or leave the process with one sentence that says what to mend.

        Raises:
            SystemExit: a variable is wrong. The sentence names it, without its value: a URL holds a password.
        """
        try:
            return cls()
        except ValidationError as error:
            sentences = (
                f"{str(wrong['loc'][0]).upper()}: {wrong['msg'].removeprefix('Value error, ')}."
                for wrong in error.errors()
            )
            raise SystemExit("\n".join(sentences)) from None
