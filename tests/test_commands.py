"""The commands, variables, options and files that the pages name: what can be run here is run, the rest is checked.

The curls are run by tests/test_readme.py, the steps that copy the project by tests/test_copy.py, and the code by
tests/test_recipes.py and tests/test_development.py.
"""

import re
import shlex
import sqlite3
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import uvicorn.config
import yaml
from alembic.config import CommandLine, Config
from alembic.script import ScriptDirectory
from opentelemetry import environment_variables
from opentelemetry.sdk import environment_variables as sdk_variables
from sqlalchemy import URL
from uvicorn.main import main as uvicorn_command

from app.settings import Settings
from tests.support.processes import BIN, ROOT, run
from tests.support.sql import execute

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
# These are run on a new database, in this order, and each prints this.
RUN = {
    ".venv/bin/alembic upgrade head": r"Running upgrade",
    "make status": r"current: (\w+)\nhead: +\1\n",
    "alembic current --check-heads": r"\(head\)",
    "alembic check": r"No new upgrade operations detected\.",
    "make token NAME=billing SCOPES=read+write": r"billing:read\+write:\w+",
}
# Programs of others, on other machines: the shell reads the command, and nobody knows their options.
ELSEWHERE = {"chromium", "git", "nginx", "psql", "py-spy", "ulimit"}
DOCKER = {
    "build": {"--tag"},
    "buildx": set(),
    "compose": {"--build", "--scale"},
    "history": set(),
    "run": {"--cap-drop", "--publish", "--read-only", "--rm", "--security-opt", "--volume"},
}
IMAGE = "heroes-api"
UVICORN = {str(option.name) for option in uvicorn_command.params}
OTHERS = {"json", "no_sandbox", "sql"}  # options of curl, Chromium and Alembic
FILES = subprocess.run(
    ["git", "ls-files"],  # noqa: S607 - git is wherever it is
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
).stdout.splitlines()


def inline_code(page: Path) -> Iterator[str]:
    """Yield each piece of code in the text of a page, on one line."""
    for code in re.findall(r"`([^`]+)`", BLOCK.sub("", page.read_text())):
        yield " ".join(code.split())


def commands(page: Path) -> Iterator[str]:
    """Yield the commands of a page: those behind a prompt, and code in its text that begins with a program."""
    for block in re.findall(r"^ *```console\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
        values: dict[str, str] = {}
        for line in re.findall(r"^ *\$ (.*)", block, re.MULTILINE):
            command = re.sub(r"\$(\w+)", lambda found: values[found[1]], line)  # noqa: B023 - is called at once
            if assigned := re.fullmatch(r'(\w+)="(.*)"', command):
                values[assigned[1]] = assigned[2]
            elif not command.startswith("curl "):
                yield command
    for code in inline_code(page):
        program = re.match(r"(?:[A-Z_]+=\S+ )*([\w./-]+) [^ ]", code)
        if program and (program[1].startswith((".venv", ".ci")) or {program[1]} & (CHECKS.keys() | ELSEWHERE)):
            yield code


def check(command: str) -> None:
    """Check a command as far as that is possible without running it."""
    assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0  # noqa: S607 - bash is wherever it is
    words = shlex.split(command.partition(" > ")[0], comments=True)
    while assigned := re.fullmatch(r"([A-Z_]+)=.*", words[0]):
        assert assigned[1] in variables()
        words = words[1:]
    program = Path(words[0]).name
    if words[0].startswith(".venv/"):
        assert (BIN / program).exists()
    if program in CHECKS:
        CHECKS[program](words[1:])


def check_make(words: list[str]) -> None:
    """Let make look for the targets. It has to use the variables."""
    makefile = (ROOT / "Makefile").read_text()
    for variable in re.findall(r"(\w+)=", " ".join(words)):
        assert f"$({variable})" in makefile
    result = run("make", "--dry-run", "--assume-old=.venv/installed", *words, changes={})
    assert result.returncode == 0, result.stdout


def check_alembic(words: list[str]) -> None:
    """Let Alembic parse the options. The revisions have to exist."""
    if words in (["upgrade"], ["stamp"]):  # the name of a command
        return
    options = CommandLine("alembic").parser.parse_args(words)
    script = ScriptDirectory.from_config(Config(*options.config or ["alembic.ini"]))
    for revision in getattr(options, "revision", "head").split(":"):
        assert revision == "base" or script.get_revision(revision)


def check_python(words: list[str]) -> None:
    """Look for a module of the project and for its options, or compile the code."""
    option, argument, *options = words
    if option == "-c":
        compile(argument, "python", "exec")
        return
    source = ROOT.joinpath(*argument.split(".")).with_suffix(".py").read_text()
    assert (option, "__main__" in source) == ("-m", True)
    for word in options:
        assert not word.startswith("-") or f'"{word}"' in source, word


def check_docker(words: list[str]) -> None:
    """Look for the services of Compose in its file, and check the command that the image runs."""
    subcommand, *words = words
    for word in words[: words.index(IMAGE)] if IMAGE in words else words:
        assert not word.startswith("--") or word in DOCKER[subcommand], word
    if subcommand == "compose":
        services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        assert words[0] in {"up", "down"}
        assert {word.partition("=")[0] for word in words[1:] if not word.startswith("--")} <= services.keys()
    elif subcommand == "run" and IMAGE in words[:-1]:
        check(shlex.join(words[words.index(IMAGE) + 1 :]))


def check_pytest(words: list[str]) -> None:
    """Look for the files."""
    for word in words:
        assert "/" not in word or (ROOT / word).exists(), word


def check_uvicorn(words: list[str]) -> None:
    """Let uvicorn parse the options."""
    uvicorn_command.make_context("uvicorn", words)


CHECKS = {
    "alembic": check_alembic,
    "docker": check_docker,
    "make": check_make,
    "pytest": check_pytest,
    "python": check_python,
    "uvicorn": check_uvicorn,
}
COMMANDS = [
    pytest.param(command, id=f"{page.name}: {command}") for page in PAGES for command in dict.fromkeys(commands(page))
]


@cache
def variables() -> set[str]:
    """Return what the service, make, Compose, a test, or a program that they start may read from the environment."""
    files = [ROOT / "Makefile", ROOT / "Dockerfile", ROOT / "docker-compose.yml", Path(uvicorn.config.__file__)]
    files += [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    return {
        *(name.upper() for name in Settings.model_fields),
        *(f"UVICORN_{name.upper()}" for name in UVICORN),
        *dir(sdk_variables),
        *dir(environment_variables),
        *re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", "".join(path.read_text() for path in files)),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_can_be_given(command: str) -> None:
    check(command)


def test_each_page_has_its_commands_found() -> None:
    """What is found is not less than it was, where a page is written in another way."""
    assert len(COMMANDS) > 80
    assert set(RUN) <= {command for page in PAGES for command in commands(page)}


@pytest.mark.slow
def test_the_commands_run_one_after_the_other_on_a_new_database(tmp_path: Path) -> None:
    changes = {"DATABASE_URL": f"sqlite:///{tmp_path}/database.db"}
    for command, printed in RUN.items():
        script = f'make() {{ command make --assume-old=.venv/installed "$@"; }}\n{command}'
        result = run("bash", "-c", script, changes=changes)
        assert result.returncode == 0, result.stdout
        assert re.search(printed, result.stdout), result.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_variable_that_a_page_names_is_read(page: Path) -> None:
    for code in inline_code(page):
        for name in re.findall(r"(?:^| )([A-Z]+(?:_[A-Z]+)+)\b", code):
            assert name in variables() or hasattr(sqlite3, name), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_option_that_a_page_names_is_one_of_a_program_that_it_is_for(page: Path) -> None:
    for code in inline_code(page):
        if option := re.match(r"--([a-z-]+)", code):
            assert option[1].replace("-", "_") in UVICORN | OTHERS, code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_file_that_a_page_names_exists(page: Path) -> None:
    for code in inline_code(page):
        for name in re.findall(
            r"(?:^| )((?:[\w.]+/)*(?:[A-Z]+\.md|[a-z0-9_-]+\.(?:py|md|conf|yml|json|toml|svg)))$", code
        ):
            assert any(f"/{file}".endswith(f"/{name}") for file in [*FILES, "sbom.json"]), name  # make sbom writes that


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_benchmark_that_a_page_names_exists(page: Path) -> None:
    for code in inline_code(page):
        if benchmark := re.fullmatch(r"bench\.(\w+)", code):
            check_python(["-m", f"bench.{benchmark[1]}"])


def statements() -> Iterator[str]:
    """Yield the statements about tables that the pages let an operator execute."""
    for page in PAGES:
        for code in inline_code(page):
            if re.match(r"SELECT .* FROM |DELETE FROM |ANALYZE ", code):
                yield code


@pytest.mark.parametrize("statement", [*statements()])
def test_a_statement_can_be_executed_on_postgres(postgres_url: URL, statement: str) -> None:
    execute(postgres_url, statement)


@pytest.mark.parametrize("statement", [one for one in statements() if "pg_" not in one])
def test_a_statement_can_be_executed_on_sqlite(sqlite_url: URL, statement: str) -> None:
    execute(sqlite_url, statement)
