"""Autogenerate: how Alembic writes revisions from the models, so that they can run under traffic."""

from collections.abc import Iterable
from typing import Any, Literal, cast

from alembic import command
from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError, rev_id
from sqlmodel import SQLModel

IndexOp = ops.CreateIndexOp | ops.DropIndexOp


def include_name(name: str | None, kind: str, _: Any) -> bool:
    """Leave the tables of other applications alone: what no model names is not ours."""
    return kind != "table" or name in SQLModel.metadata.tables


def compare_server_default(*arguments: Any) -> bool | None:
    """Take an empty text for one, however it is quoted: Alembic doesn't on SQLite. The rest is left to Alembic."""
    *_, found, _, wanted = arguments
    both = (found, wanted)
    return False if None not in both and not any(default.strip("()'\"") for default in both) else None


def render_item(kind: str, item: Any, _: AutogenContext) -> str | Literal[False]:
    """Write SQLModel's types as SQLAlchemy's, so that a revision needs no import and outlives SQLModel."""
    if kind == "type" and type(item).__module__.startswith("sqlmodel."):
        return f"sa.{item.impl!r}"
    return False


class OnlineIndex(ops.MigrateOperation):
    """An index, more or less, on a table that is in use."""

    def __init__(self, operation: IndexOp) -> None:
        self.operation = operation

    def reverse(self) -> "OnlineIndex":
        """Undo it in the same way."""
        return OnlineIndex(self.operation.reverse())


@renderers.dispatch_for(OnlineIndex)
def render_online_index(context: AutogenContext, index: OnlineIndex) -> str:
    """Write what Alembic writes, but as a call of `migrations.online`."""
    context.imports.add("from migrations import online")
    rendered = cast(str, renderers.dispatch(index.operation)(context, index.operation))
    return rendered.replace("op.", "online.", 1)


def split(migration: MigrationContext, _: Any, scripts: list[ops.MigrationScript]) -> None:
    """Give indexes on tables that are in use revisions of their own: they are not made in a transaction.

    Raises:
        CommandError: a new column could not be filled, neither in the rows that are there nor by the release before.
    """
    (script,) = scripts
    if script.message is None or script.upgrade_ops is None:
        if getattr(migration.config and migration.config.cmd_opts, "cmd", [None])[0] is command.revision:
            raise CommandError("Say what the revision does: --message '...'")
        return  # `alembic check` wants to know what differs, in one list
    drops, rest, creates = _sort(script.upgrade_ops)
    for operation in rest:
        _refuse_a_column_without_value(operation)
    if not drops and not creates:
        return
    parts = [part for part in (drops, rest, creates) if part]
    scripts.clear()
    head = script.head
    for position, operations in enumerate(parts, start=1):
        upgrade = ops.UpgradeOps(operations)
        part = ops.MigrationScript(
            rev_id() if scripts else script.rev_id,
            upgrade,
            upgrade.reverse(),
            # The number first: a file's name has the beginning of the message, and files shall sort as they run.
            message=f"{position} of {len(parts)}: {script.message}" if len(parts) > 1 else script.message,
            head=head,
            splice=script.splice,
            version_path=script.version_path,
        )
        scripts.append(part)
        head = part.rev_id


def _sort(
    upgrade: ops.UpgradeOps,
) -> tuple[list[ops.MigrateOperation], list[ops.MigrateOperation], list[ops.MigrateOperation]]:
    """Take the indexes on tables that are in use out of the rest: those that go, and those that come."""
    whole = {
        operation.table_name for operation in upgrade.ops if isinstance(operation, ops.CreateTableOp | ops.DropTableOp)
    }
    drops: list[ops.MigrateOperation] = []
    rest: list[ops.MigrateOperation] = []
    creates: list[ops.MigrateOperation] = []
    for group in upgrade.ops:
        if not isinstance(group, ops.ModifyTableOps) or group.table_name in whole:
            rest.append(group)
            continue
        drops += _online(group.ops, ops.DropIndexOp)
        creates += _online(group.ops, ops.CreateIndexOp)
        group.ops = [operation for operation in group.ops if not isinstance(operation, IndexOp)]
        if group.ops:
            rest.append(group)
    return drops, rest, creates


def _online(operations: Iterable[ops.MigrateOperation], kind: type[Any]) -> list[ops.MigrateOperation]:
    return [OnlineIndex(operation) for operation in operations if isinstance(operation, kind)]


def _refuse_a_column_without_value(group: ops.MigrateOperation) -> None:
    for operation in group.ops if isinstance(group, ops.ModifyTableOps) else ():
        if isinstance(operation, ops.AddColumnOp):
            column = operation.column
            if not column.nullable and column.server_default is None and column.computed is None:
                raise CommandError(
                    f"{operation.table_name}.{column.name} is NOT NULL: give it a server_default in the model"
                    " (sa_column_kwargs={'server_default': ...}), or let it be None. The rows that are there have no"
                    " value for it, and the release that runs during the upgrade writes none."
                )
