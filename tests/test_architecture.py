"""The house keeps to its rules."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import SQLModel

from tests.processes import ROOT

APP = ROOT / "app"
FILES = sorted(APP.rglob("*.py"))
KERNEL = [path for path in FILES if path.parent == APP and path.name not in {"main.py", "__init__.py"}]
RESOURCES = [path for path in FILES if path.parent.parent == APP]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", KERNEL, ids=name)
def test_a_kernel_file_knows_no_resource_and_not_the_service(path: Path) -> None:
    resources = {f"app.{path.parent.name}" for path in RESOURCES}
    for module in imported(path):
        assert not any(module.startswith(resource) for resource in resources)
        assert not module.startswith("app.main")
    assert "hero" not in path.read_text().lower()


@pytest.mark.parametrize("path", RESOURCES, ids=name)
def test_a_resource_knows_its_own_models_and_the_kernel(path: Path) -> None:
    own = f"app.{path.parent.name}."
    kernel = tuple(f"app.{other.stem}" for other in KERNEL)
    for module in imported(path):
        assert not module.startswith("app") or module.startswith((own, *kernel))


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "main.py"], ids=name)
def test_only_main_reads_the_settings(path: Path) -> None:
    assert not any(module.startswith("app.settings") for module in imported(path))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_file_makes_tables_past_the_migrations(path: Path) -> None:
    assert "create_all(" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_file_is_longer_than_250_lines_and_no_handler_longer_than_15(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 250
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AsyncFunctionDef) and path.name == "routes.py":
            assert node.end_lineno is not None
            assert node.end_lineno - node.body[0].lineno < 15


@pytest.mark.parametrize("path", KERNEL, ids=name)
def test_every_kernel_file_has_its_own_tests(path: Path) -> None:
    assert (ROOT / f"tests/test_{path.name}").exists()


def test_every_constraint_has_a_name() -> None:
    for table in SQLModel.metadata.tables.values():
        assert all(constraint.name for constraint in table.constraints)
        assert all(index.name for index in table.indexes)


def test_importing_the_service_opens_nothing(tmp_path: Path) -> None:
    """No database, no socket, no file for writing: a hook of Python's own tells of each."""
    script = """
import sys
opened = []
def hook(event, arguments):
    if event in {"sqlite3.connect", "socket.connect", "socket.bind"}:
        opened.append((event, arguments))
    if event == "open" and arguments[1] and set(arguments[1]) & set("wax+"):
        opened.append((event, arguments))
sys.dont_write_bytecode = True
sys.addaudithook(hook)
import app.main
assert not opened, opened
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=True)
    assert not list(tmp_path.iterdir())
