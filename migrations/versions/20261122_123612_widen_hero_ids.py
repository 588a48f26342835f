"""Give heroes ids that never run out and are never used twice.

Why: Postgres's SERIAL ends at 2,147,483,647, and SQLite gives the id of the newest hero, once deleted, to the next
one: a client that repeats its DELETE then deletes a stranger.

Locks: this is the one revision that makes a table anew. On Postgres that happens under an ACCESS EXCLUSIVE lock, and
everybody waits: 2.2 to 2.6 s per million rows, some 40 passes over the table. On SQLite only writers wait: 1.5 to 1.9 s
per million rows, some 20 passes. Measured with bench/upgrade.py on 2 cores; an empty table takes no time.

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-22 12:36:12+00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
reversible = True
squawk_exceptions = {"changing-column-type": "It rewrites the table once, before anybody has many rows: Locks, above."}


def upgrade() -> None:
    """Widen the column and its sequence on Postgres, make the table anew with AUTOINCREMENT on SQLite."""
    number_ids(sa.BigInteger(), "BIGINT", autoincrement=True)


def downgrade() -> None:
    """Narrow them again. Postgres refuses when an id has outgrown 32 bits."""
    number_ids(sa.Integer(), "INTEGER", autoincrement=False)


def number_ids(column_type: sa.types.TypeEngine[int], sequence_type: str, *, autoincrement: bool) -> None:
    """Set the type of the ids, and whether SQLite remembers those it gave away."""
    if op.get_context().dialect.name == "sqlite":
        with op.batch_alter_table("hero", recreate="always", table_kwargs={"sqlite_autoincrement": autoincrement}):
            pass
    else:
        op.alter_column("hero", "id", type_=column_type)
        op.execute(f"ALTER SEQUENCE hero_id_seq AS {sequence_type}")
