"""What operators set, by environment variables of the same names in capitals."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import URL

from app.database import parse_url


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
        description="Connections that one process opens at most for requests.",
    )
    lock_timeout: float = Field(
        default=5,
        gt=0,
        description="Seconds that a statement waits for a lock that another one holds.",
    )
    statement_timeout: float = Field(
        default=10,
        gt=0,
        description="Seconds that one statement may take on Postgres.",
    )
    sqlite_synchronous: Literal["NORMAL", "FULL"] = Field(
        default="NORMAL",
        description="FULL: a write on SQLite survives a power cut too, at the price of an fsync.",
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
            first = error.errors()[0]
            name = str(first["loc"][0]).upper()
            raise SystemExit(f"{name}: {first['msg'].removeprefix('Value error, ')}.") from None
