"""The rules of the code: who imports whom, how long a file is, and what is done only once."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from sqlmodel import SQLModel

from tests.support.processes import ROOT

APP = ROOT / "app"
FILES = sorted(APP.rglob("*.py"))
KERNEL = [path for path in FILES if path.parent == APP and path.name not in {"main.py", "__init__.py"}]
RESOURCES = [path for path in FILES if path.parent.parent == APP]


# The database, below HTTP: each of these can be used without a web framework.
DATABASE = [
    APP / f"{name}.py"
    for name in (
        "capacity",
        "database",
        "db_errors",
        "drivers",
        "hosts",
        "pool",
        "pooled_connection",
        "pooler",
        "replication",
        "schema",
        "slots",
        "sql_log",
        "sqlite_file",
        "urls",
    )
]
# Everything but what says of each private name why it is used.
PUBLIC_API = [path for path in (*FILES, *sorted((ROOT / "migrations").rglob("*.py"))) if path != APP / "drivers.py"]


@cache
def imported(path: Path) -> list[str]:
    """List what a file imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_a_kernel_file_knows_no_resource_and_not_the_service() -> None:
    above = ("app.main", *(f"app.{path.parent.name}" for path in RESOURCES))
    for path in KERNEL:
        assert not [module for module in imported(path) if module.startswith(above)], path
        assert "hero" not in path.read_text().lower(), path


def test_a_resource_imports_itself_the_kernel_and_the_models_of_other_resources() -> None:
    for path in RESOURCES:
        assert not refused_imports(path), path


def test_a_resource_may_import_the_models_of_another_and_nothing_else_of_it(tmp_path: Path) -> None:
    path = tmp_path / "sidekicks" / "routes.py"
    path.parent.mkdir()
    path.write_text("from app.heroes.models import Hero\nfrom app.heroes.routes import router\nimport app.main\n")
    assert refused_imports(path) == ["app.heroes.routes.router", "app.main"]


def refused_imports(path: Path) -> list[str]:
    """List what a file of a resource imports and should not."""
    kernel = {f"app.{other.stem}" for other in KERNEL}
    models = {f"app.{other.parent.name}.models" for other in RESOURCES}
    return [
        module
        for module in imported(path)
        if module.split(".")[0] == "app"
        and module.split(".")[1] != path.parent.name
        and not {module, module.rpartition(".")[0]} & (kernel | models)
    ]


def test_the_database_knows_nothing_of_http_and_nothing_that_does() -> None:
    below = {f"app.{path.stem}" for path in DATABASE}
    for path in DATABASE:
        for module in imported(path):
            assert module.split(".")[0] not in {"fastapi", "starlette", "uvicorn"}, path
            assert not module.startswith("app") or {module, module.rpartition(".")[0]} & below, path


def test_a_file_uses_no_private_name_of_another() -> None:
    for path in PUBLIC_API:
        assert not private_names(path.read_text()), path


@pytest.mark.parametrize(
    "source",
    [
        "from sqlalchemy.util._concurrency_py3k import greenlet_spawn",
        "from app.pool import _close",
        "import starlette._utils",
        "pool._idle.clear()",
        "class Mine(Theirs):\n    def stop(self):\n        self._thread.daemon = True",
    ],
)
def test_a_private_name_of_another_is_found(source: str) -> None:
    assert private_names(source)


def private_names(source: str) -> list[str]:
    """List the private names that a file uses and does not define."""
    tree = ast.parse(source)
    used, defined = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [*(alias.name for alias in node.names), getattr(node, "module", None) or ""]
            used += [part for module in modules for part in module.split(".")]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.Attribute):
            is_own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
            if is_own and isinstance(node.ctx, ast.Store):
                defined.add(node.attr)
            else:
                used.append(node.attr if is_own else f"{ast.unparse(node.value)}.{node.attr}")
    private = [name for name in used if re.match("_(?!_)", name.rpartition(".")[2])]
    return [name for name in private if name not in defined]


def test_only_main_reads_the_settings() -> None:
    readers = [path.name for path in FILES if any(module.startswith("app.settings") for module in imported(path))]
    assert readers == ["main.py"]


def test_no_file_makes_tables_past_the_migrations() -> None:
    for path in FILES:
        assert "create_all(" not in path.read_text(), path


def test_no_file_is_longer_than_250_lines() -> None:
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 250, path


def test_no_handler_is_longer_than_15_lines() -> None:
    for path in RESOURCES:
        if path.name == "routes.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.AsyncFunctionDef):
                    assert node.end_lineno is not None
                    assert node.end_lineno - node.body[0].lineno < 15, node.name


def test_every_kernel_file_has_its_own_tests() -> None:
    for path in KERNEL:
        assert (ROOT / f"tests/test_{path.name}").exists(), path


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
