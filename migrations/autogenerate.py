"""Autogenerate: hooks that make Alembic write revisions which can run under traffic."""

from copy import copy
from typing import Any, Literal

from alembic import context
from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.rewriter import Rewriter
from alembic.operations import ops
from alembic.util import CommandError, rev_id
from sqlalchemy import Enum
from sqlmodel import SQLModel

IndexOp = ops.CreateIndexOp | ops.DropIndexOp


def include_name(name: str | None, kind: str, _: Any) -> bool:
    """Ignore the tables of other applications: those that no model names."""
    return kind != "table" or name in SQLModel.metadata.tables


def compare_server_default(*arguments: Any) -> bool | None:
    """Treat empty strings as equal, however they are quoted. On SQLite, Alembic does not."""
    *_, inspected, _, metadata = arguments
    defaults = (inspected, metadata)
    return False if None not in defaults and not any(default.strip("()'\"") for default in defaults) else None


def render_item(kind: str, item: Any, _: AutogenContext) -> str | Literal[False]:
    """Render SQLModel's types as SQLAlchemy's, so that a revision does not import SQLModel."""
    if kind == "type" and type(item).__module__.startswith("sqlmodel."):
        return f"sa.{item.impl!r}"
    return False


class DropEnumOp(ops.MigrateOperation):
    """Drop the type that Postgres has created for a table's Enum, and that it keeps after the table."""

    def __init__(self, name: str) -> None:
        self.name = name


@renderers.dispatch_for(DropEnumOp)
def render_drop_enum(_: AutogenContext, operation: DropEnumOp) -> list[str]:
    """Render a statement that SQLite, which has no such types, does not get."""
    statement = f"DROP TYPE {operation.name}"
    return ["if op.get_context().dialect.name != 'sqlite':", f"op.execute({statement!r})", ""]


class OnlineIndexOp(ops.MigrateOperation):
    """Create or drop an index by `migrations.online`."""

    def __init__(self, operation: IndexOp) -> None:
        self.operation = operation

    def reverse(self) -> "OnlineIndexOp":
        """Return the operation that undoes this one."""
        return OnlineIndexOp(self.operation.reverse())


@renderers.dispatch_for(OnlineIndexOp)
def render_online_index(autogen_context: AutogenContext, operation: OnlineIndexOp) -> str:
    """Render Alembic's own call, with `online` in place of `op`."""
    autogen_context.imports.add("from migrations import online")
    call: str = renderers.dispatch(operation.operation)(autogen_context, operation.operation)
    return call.replace("op.", "online.", 1)


rewriter = Rewriter()


@rewriter.rewrites(ops.DropTableOp)
def drop_enums(_migration: Any, _revision: Any, operation: ops.DropTableOp) -> list[ops.MigrateOperation]:
    """Let the drop of a table drop the types of its columns too."""
    types = [column.type for column in operation.to_table().columns]
    return [operation, *(DropEnumOp(str(kind.name)) for kind in types if isinstance(kind, Enum) and kind.native_enum)]


def process_revision_directives(migration: Any, revision: Any, scripts: list[ops.MigrationScript]) -> None:
    """Change what Alembic writes into revisions: see `split_online_indexes` and `drop_enums`.

    Raises:
        CommandError: the revision has no message, or a new column has no value for existing rows.
    """
    if scripts[0].message is not None:
        split_online_indexes(scripts)
        rewriter(migration, revision, scripts)
    elif getattr(context.config.cmd_opts, "autogenerate", False):  # not by `alembic check`, which has none
        raise CommandError("Describe the revision: --message '...'")


def split_online_indexes(scripts: list[ops.MigrationScript]) -> None:
    """Move indexes on existing tables to revisions of their own: they are built outside a transaction."""
    (script,) = scripts
    differences = script.upgrade_ops.ops if script.upgrade_ops else []
    whole_tables = {op.table_name for op in differences if isinstance(op, ops.CreateTableOp | ops.DropTableOp)}
    drops: list[ops.MigrateOperation] = []
    others: list[ops.MigrateOperation] = []
    creates: list[ops.MigrateOperation] = []
    for group in differences:
        if isinstance(group, ops.ModifyTableOps) and group.table_name not in whole_tables:
            refuse_column_without_value(group)
            drops += [OnlineIndexOp(op) for op in group.ops if isinstance(op, ops.DropIndexOp)]
            creates += [OnlineIndexOp(op) for op in group.ops if isinstance(op, ops.CreateIndexOp)]
            group.ops = [op for op in group.ops if not isinstance(op, IndexOp)]
        if not isinstance(group, ops.ModifyTableOps) or group.ops:
            others.append(group)
    if not drops and not creates:
        return
    parts = [part for part in (drops, others, creates) if part]
    scripts.clear()
    head, revision = script.head, script.rev_id
    for number, operations in enumerate(parts, start=1):
        upgrade = ops.UpgradeOps(operations)
        # The number comes first: the message begins the file name, and files sort in the order of the revisions.
        message = f"{number} of {len(parts)}: {script.message}" if len(parts) > 1 else script.message
        part = copy(script)
        part.rev_id, part.head, part.message = revision, head, message
        part.upgrade_ops, part.downgrade_ops = upgrade, upgrade.reverse()
        part.branch_label = script.branch_label if number == 1 else None
        scripts.append(part)
        head, revision = str(revision), rev_id()


def refuse_column_without_value(group: ops.ModifyTableOps) -> None:
    """Refuse a new column that is NOT NULL and that the database has no value for."""
    for column in [operation.column for operation in group.ops if isinstance(operation, ops.AddColumnOp)]:
        if not column.nullable and column.server_default is None and column.computed is None:
            raise CommandError(
                f"{group.table_name}.{column.name} is NOT NULL: give it a server_default in the model"
                " (sa_column_kwargs={'server_default': ...}), or allow None. Existing rows have no value for it,"
                " and the previous release, which runs during the upgrade, writes none."
            )
