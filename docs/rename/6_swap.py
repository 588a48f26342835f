"""Swap: an alias must be there, a secret name need not.

Why: the next release no longer writes secret names. The constraint has proved that every hero has an alias, so
Postgres need not look again.

Locks: ACCESS EXCLUSIVE, for a moment. On SQLite writers wait: the table is made anew.

Revision ID: rename_6
Revises: rename_5
Create Date: 2026-11-22 18:00:06+00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "rename_6"
down_revision = "rename_5"
branch_labels = None
depends_on = None
reversible = False  # downgrade() fails where a secret name is missing by then
squawk_exceptions = {
    "adding-not-nullable-field": "The constraint that was validated before spares Postgres the look at every row.",
    "ban-drop-constraint": "NOT NULL says the same.",
    "ban-drop-not-null": "No release that still runs reads secret names.",
}


def upgrade() -> None:
    """Move the promise from the constraint to the column, and from the old column to the new."""
    if op.get_context().dialect.name != "sqlite":
        op.alter_column("hero", "alias", existing_type=sa.String(), nullable=False)
        op.drop_constraint(op.f("hero_alias_check"), "hero", type_="check")
    with op.batch_alter_table("hero") as hero:
        hero.alter_column("secret_name", existing_type=sa.String(), nullable=True)


def downgrade() -> None:
    """Move them back."""
    with op.batch_alter_table("hero") as hero:
        hero.alter_column("secret_name", existing_type=sa.String(), nullable=False)
    if op.get_context().dialect.name != "sqlite":
        op.create_check_constraint(op.f("hero_alias_check"), "hero", "alias IS NOT NULL")
        op.alter_column("hero", "alias", existing_type=sa.String(), nullable=True)
