"""Swap: make alias NOT NULL, and secret_name nullable.

Why: the next release writes no secret names. The validated constraint spares Postgres a scan for NOT NULL.

Locks: ACCESS EXCLUSIVE, briefly. On SQLite the table is rebuilt, which blocks writes.

Revision ID: rename_6
Revises: rename_5
Create Date: 2026-11-22 18:00:06+00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "rename_6"
down_revision = "rename_5"
reversible = False  # downgrade() fails if a secret name is missing
squawk_exceptions = {
    "adding-not-nullable-field": "The validated constraint spares Postgres a scan of the table.",
    "ban-drop-constraint": "NOT NULL replaces it.",
    "ban-drop-not-null": "No running release reads secret names.",
}


def upgrade() -> None:
    """Replace the constraint by NOT NULL, and allow missing secret names."""
    if op.get_context().dialect.name != "sqlite":
        op.alter_column("hero", "alias", existing_type=sa.String(), nullable=False)
        op.drop_constraint(op.f("hero_alias_check"), "hero", type_="check")
    with op.batch_alter_table("hero") as hero:
        hero.alter_column("secret_name", existing_type=sa.String(), nullable=True)


def downgrade() -> None:
    """Require secret names, and replace NOT NULL by the constraint."""
    with op.batch_alter_table("hero") as hero:
        hero.alter_column("secret_name", existing_type=sa.String(), nullable=False)
    if op.get_context().dialect.name != "sqlite":
        op.create_check_constraint(op.f("hero_alias_check"), "hero", "alias IS NOT NULL")
        op.alter_column("hero", "alias", existing_type=sa.String(), nullable=True)
