"""Contract: drop the column secret_name.

Why: no running release uses it.

Locks: ACCESS EXCLUSIVE, briefly. On SQLite the table is rebuilt, which blocks writes.

Revision ID: rename_7
Revises: rename_6
Create Date: 2026-11-22 18:00:07+00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "rename_7"
down_revision = "rename_6"
reversible = False  # downgrade() adds an empty column
squawk_exceptions = {"ban-drop-column": "No running release uses the column: see Why."}


def upgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("hero") as hero:
        hero.drop_column("secret_name")


def downgrade() -> None:
    """Add the column, with empty names."""
    op.add_column("hero", sa.Column("secret_name", sa.String(), nullable=False, server_default=""))
