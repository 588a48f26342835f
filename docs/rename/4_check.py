"""Check: no hero from now on is without an alias.

Why: NOT NULL by itself reads the whole table while everybody waits; a constraint that is checked later does not.

Locks: ACCESS EXCLUSIVE, for a moment: the rows that are there are not read. On SQLite writers wait: the
table is made anew.

Revision ID: rename_4
Revises: rename_3
Create Date: 2026-11-22 18:00:04+00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "rename_4"
down_revision = "rename_3"
branch_labels = None
depends_on = None
reversible = True


def upgrade() -> None:
    """Add the constraint for new rows; SQLite has no such thing, and says NOT NULL at once."""
    if op.get_context().dialect.name == "sqlite":
        with op.batch_alter_table("hero") as hero:
            hero.alter_column("alias", existing_type=sa.String(), nullable=False)
    else:
        op.create_check_constraint(op.f("hero_alias_check"), "hero", "alias IS NOT NULL", postgresql_not_valid=True)


def downgrade() -> None:
    """Take it back."""
    if op.get_context().dialect.name == "sqlite":
        with op.batch_alter_table("hero") as hero:
            hero.alter_column("alias", existing_type=sa.String(), nullable=True)
    else:
        op.drop_constraint(op.f("hero_alias_check"), "hero", type_="check")
