"""The house keeps to its rules."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
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
def test_a_resource_imports_itself_the_kernel_and_the_models_of_other_resources(path: Path) -> None:
    assert not refused_imports(path)


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


@pytest.mark.parametrize("path", DATABASE, ids=name)
def test_the_database_does_not_know_http(path: Path) -> None:
    assert not {module.split(".")[0] for module in imported(path)} & {"fastapi", "starlette", "uvicorn"}


@pytest.mark.parametrize("path", DATABASE, ids=name)
def test_the_database_imports_nothing_that_knows_http(path: Path) -> None:
    below = {f"app.{other.stem}" for other in DATABASE}
    for module in imported(path):
        assert not module.startswith("app") or {module, module.rpartition(".")[0]} & below


@pytest.mark.parametrize("path", PUBLIC_API, ids=name)
def test_a_file_uses_no_private_name_of_another(path: Path) -> None:
    assert not private_names(path.read_text())


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
