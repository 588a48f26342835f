"""Add versions to heroes, and sort names by code point.

Why: the version is the ETag. With collation C, names sort as on SQLite, whatever the locale of the Postgres database.

Locks: ACCESS EXCLUSIVE, briefly: no row is rewritten. On SQLite it blocks writes briefly.

Revision ID: 0004
Revises: 0003
Create Date: 2026-11-22 19:00:02+00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
reversible = False  # downgrade() drops the versions
squawk_exceptions = {
    "changing-column-type": "Only the collation changes: no row is rewritten, and no index has the column."
}


def upgrade() -> None:
    """Add the column, and change the collation on Postgres: SQLite sorts by code point already."""
    op.add_column("hero", sa.Column("version", sa.BigInteger(), server_default="1", nullable=False))
    if op.get_context().dialect.name != "sqlite":
        op.alter_column(
            "hero", "name", type_=sa.String(collation="C"), existing_type=sa.String(), existing_nullable=False
        )


def downgrade() -> None:
    """Drop the versions. They restart at 1, so an old ETag may match a changed hero."""
    if op.get_context().dialect.name != "sqlite":
        op.alter_column(
            "hero", "name", type_=sa.String(collation="default"), existing_type=sa.String(), existing_nullable=False
        )
    op.drop_column("hero", "version")
