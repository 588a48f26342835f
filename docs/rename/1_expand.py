"""Expand: add the column alias.

Why: `secret_name` becomes `alias`. The release with this revision writes both columns.

Locks: ACCESS EXCLUSIVE, briefly: the column is nullable without a default, so no row is rewritten.

Revision ID: rename_1
Revises: the newest revision of the service
Create Date: 2026-11-22 18:00:01+00:00
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from alembic.script import ScriptDirectory

MIGRATIONS = Path(__file__).parents[2] / "migrations"

revision = "rename_1"
down_revision = ScriptDirectory(str(MIGRATIONS)).get_current_head()  # a revision of your own has the id itself
reversible = False  # downgrade() drops the aliases


def upgrade() -> None:
    """Add the column. The previous release does not use it."""
    op.add_column("hero", sa.Column("alias", sa.String(), nullable=True))


def downgrade() -> None:
    """Drop the column with all aliases."""
    op.drop_column("hero", "alias")
