"""Check: require an alias in new rows.

Why: SET NOT NULL scans the table under an exclusive lock, unless a validated constraint proves it.

Locks: ACCESS EXCLUSIVE, briefly: NOT VALID skips existing rows. On SQLite the table is rebuilt, which blocks writes.

Revision ID: rename_4
Revises: rename_3
Create Date: 2026-11-22 18:00:04+00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "rename_4"
down_revision = "rename_3"
reversible = True


def upgrade() -> None:
    """Add the constraint as NOT VALID. SQLite has no such constraint, so the column becomes NOT NULL at once."""
    if op.get_context().dialect.name == "sqlite":
        with op.batch_alter_table("hero") as hero:
            hero.alter_column("alias", existing_type=sa.String(), nullable=False)
    else:
        op.create_check_constraint(op.f("hero_alias_check"), "hero", "alias IS NOT NULL", postgresql_not_valid=True)


def downgrade() -> None:
    """Drop the constraint."""
    if op.get_context().dialect.name == "sqlite":
        with op.batch_alter_table("hero") as hero:
            hero.alter_column("alias", existing_type=sa.String(), nullable=True)
    else:
        op.drop_constraint(op.f("hero_alias_check"), "hero", type_="check")
