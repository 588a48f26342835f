"""A copy of the project becomes another service by the steps of the README."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import ROOT, run

README = (ROOT / "README.md").read_text()
STEPS = README.partition("\n## Make it yours\n")[2].partition("\n## ")[0]
PREPARE, RENAME, COPY, GENERATE = re.findall(r"^```sh\n(.*?)^```", STEPS, re.MULTILINE | re.DOTALL)
# The lines that come into app/main.py, by the line before each.
INCLUDE: dict[str, str] = dict(re.findall(r"^ (.*\n)\+(.*\n)", STEPS, re.MULTILINE))
# What a developer writes where the template of a revision asks for it.
DOCSTRING = {
    "Why: the rule or query that needs this.": "Why: heroes have enemies.",
    "Locks: the strongest lock, what it blocks, and for how long per million rows.": (
        "Locks: SHARE ROW EXCLUSIVE on the table that the new one refers to, which blocks writes briefly."
    ),
}
TIMEOUT = 1200  # seconds; the machine may be busy


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A clone of the project, as it is in the working tree, with this virtual environment."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S607 - git is wherever it is
    for name in files.split("\0")[:-1]:
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    if (ROOT / ".mypy_cache").exists():  # what mypy knows of the libraries takes it half a minute
        shutil.copytree(ROOT / ".mypy_cache", tmp_path / ".mypy_cache")
    execute(tmp_path, "git init -q && git add . && git -c user.name=x -c user.email=x@x commit -qm Copy")
    return tmp_path


def execute(project: Path, commands: str) -> str:
    """Run commands in a shell, each of which must succeed, and return their output. `make` installs nothing."""
    script = f'set -euo pipefail; make() {{ command make -o .venv/installed "$@"; }}\n{commands}'
    result = run("bash", "-c", script, cwd=project, changes={}, timeout=TIMEOUT)
    assert result.returncode == 0, result.stdout
    return result.stdout


def complete_docstring(project: Path) -> None:
    (revision,) = project.glob("migrations/versions/*_create_villain*.py")
    source = revision.read_text()
    for placeholder, text in DOCSTRING.items():
        assert placeholder in source
        source = source.replace(placeholder, text)
    revision.write_text(source)


def copy_heroes(project: Path) -> None:
    """Let villains be a second resource, which is a copy of heroes."""
    execute(project, PREPARE + COPY)
    main = project / "app/main.py"
    source = main.read_text()
    for line, added in INCLUDE.items():
        source = source.replace(line, line + added)
    main.write_text(source)


def changes(project: Path) -> list[str]:
    """List what differs from the clone."""
    changed = re.sub(r"\d{8}_\d{6}", "DATE", execute(project, "git status --short"))
    return [line.strip() for line in changed.splitlines()]


def check(project: Path, *tests: str) -> None:
    """Run what the README says checks a copy, of the tests only those that a copy can break."""
    execute(project, "make lint types drift")
    execute(project, f".venv/bin/pytest {' '.join(f'tests/test_{name}.py' for name in tests)}")


def test_the_lines_that_come_into_main_follow_lines_of_it() -> None:
    assert len(INCLUDE) == 2
    source = (ROOT / "app/main.py").read_text()
    for line, added in INCLUDE.items():
        assert source.count(f"\n{line}") == 1
        assert added == line.replace("heroes", "villains")


@pytest.mark.slow
def test_a_copy_with_another_resource_has_no_heroes_and_passes(project: Path) -> None:
    execute(project, PREPARE + RENAME)
    complete_docstring(project)
    assert execute(project, "git grep -Iil hero || true; git ls-files | grep -i hero || true") == ""
    kernel = ("architecture", "contract", "distribute", "migrations", "openapi", "readme", "schema", "status", "tour")
    check(project, *kernel, "revisions", "villains")


@pytest.mark.slow
def test_a_second_resource_is_a_copy_of_a_folder_and_a_test_file_two_lines_and_a_revision(project: Path) -> None:
    copy_heroes(project)
    execute(project, GENERATE)
    complete_docstring(project)
    assert changes(project) == [
        "M app/main.py",
        "D  tests/test_copy.py",
        "?? app/villains/",
        "?? migrations/versions/DATE_create_villain.py",
        "?? tests/test_villains.py",
    ]
    check(project, "architecture", "contract", "openapi", "villains")


@pytest.mark.slow
def test_a_second_resource_has_columns_and_operations_of_its_own(project: Path) -> None:
    """A foreign key, a relationship, an Enum, a Decimal, a datetime, lists of them, and a current user."""
    copy_heroes(project)
    for file in (project / "docs/villains").glob("*.py"):
        shutil.copy2(file, project / ("tests" if file.name.startswith("test_") else "app/villains"))
    execute(project, GENERATE)
    complete_docstring(project)
    check(project, "distribute", "openapi", "revisions", "villains")
