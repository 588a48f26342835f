"""Expand: let heroes have an alias.

Why: `secret_name` is to be called `alias`. The release that comes with this revision writes both.

Locks: ACCESS EXCLUSIVE, for a moment: the column is empty, so no row is touched.

Revision ID: rename_1
Revises: 0006
Create Date: 2026-11-22 18:00:01+00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "rename_1"
down_revision = "0006"
branch_labels = None
depends_on = None
reversible = False  # downgrade() drops the aliases


def upgrade() -> None:
    """Add the column, which the release before does not know, and need not."""
    op.add_column("hero", sa.Column("alias", sa.String(), nullable=True))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("hero", "alias")
