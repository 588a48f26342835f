"""Widen the ids of heroes to 64 bits, and never reuse one.

Why: SERIAL on Postgres ends at 2,147,483,647. SQLite reuses the id of the newest hero after its deletion: a client
that retries its DELETE would delete another hero.

Locks: this is the only revision that rewrites a table. On Postgres it takes an ACCESS EXCLUSIVE lock, which blocks all
requests: 2.2 to 2.6 s per million rows, about 40 passes over the table. On SQLite it blocks writes: 1.5 to 1.9 s per
million rows, about 20 passes. Measured with bench/upgrade.py on 2 cores; an empty table takes no time.

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-22 12:36:12+00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
reversible = True
squawk_exceptions = {"changing-column-type": "It rewrites the table once, while tables are small: see Locks."}


def upgrade() -> None:
    """Widen the column and its sequence on Postgres, rebuild the table with AUTOINCREMENT on SQLite."""
    alter_ids(sa.BigInteger(), "BIGINT", autoincrement=True)


def downgrade() -> None:
    """Narrow the ids to 32 bits. Postgres refuses that if an id is larger."""
    alter_ids(sa.Integer(), "INTEGER", autoincrement=False)


def alter_ids(column_type: sa.types.TypeEngine[int], sequence_type: str, *, autoincrement: bool) -> None:
    """Set the type of the ids, and AUTOINCREMENT on SQLite."""
    if op.get_context().dialect.name == "sqlite":
        with op.batch_alter_table("hero", recreate="always", table_kwargs={"sqlite_autoincrement": autoincrement}):
            pass
    else:
        op.alter_column("hero", "id", type_=column_type)
        op.execute(f"ALTER SEQUENCE hero_id_seq AS {sequence_type}")
