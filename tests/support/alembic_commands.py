"""Alembic's commands for a given database, in this process or in one of their own."""

from argparse import Namespace
from pathlib import Path
from subprocess import CompletedProcess

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL

from tests.support.processes import ROOT, render_url, run

SCRIPT = ScriptDirectory.from_config(Config(ROOT / "alembic.ini"))
HEAD = str(SCRIPT.get_current_head())
BASE = str(SCRIPT.get_base())  # the oldest revision


def alembic_config(url: URL, *arguments: str) -> Config:
    """Return the configuration of Alembic's command line for a database, with arguments for `-x`."""
    return Config(ROOT / "alembic.ini", cmd_opts=Namespace(x=arguments), attributes={"url": url})


def migrate(url: URL, revision: str = "head") -> None:
    """Upgrade a database in this process."""
    command.upgrade(alembic_config(url), revision)


def try_alembic(url: URL, *arguments: str, cwd: Path = ROOT, **settings: str) -> CompletedProcess[str]:
    """Run Alembic's command line, with settings in its environment."""
    return run("alembic", *arguments, cwd=cwd, changes={"DATABASE_URL": render_url(url), **settings})


def alembic(url: URL, *arguments: str, cwd: Path = ROOT, **settings: str) -> str:
    """Run Alembic's command line, assert that it succeeds, and return its output."""
    result = try_alembic(url, *arguments, cwd=cwd, **settings)
    assert result.returncode == 0, result.stdout
    return result.stdout
