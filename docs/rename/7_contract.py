"""Contract: forget the secret names.

Why: no release that still runs reads or writes them.

Locks: ACCESS EXCLUSIVE, for a moment. On SQLite writers wait: the table is made anew.

Revision ID: rename_7
Revises: rename_6
Create Date: 2026-11-22 18:00:07+00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "rename_7"
down_revision = "rename_6"
branch_labels = None
depends_on = None
reversible = False  # downgrade() makes the column again, and nothing in it
squawk_exceptions = {"ban-drop-column": "The releases that used it are gone: that is what Why, above, has to say."}


def upgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("hero") as hero:
        hero.drop_column("secret_name")


def downgrade() -> None:
    """Make it again, empty."""
    op.add_column("hero", sa.Column("secret_name", sa.String(), nullable=False, server_default=""))
