"""Count the versions of heroes, and put names in the order of their code points.

Why: the version is the ETag. The order is the same on both databases, whatever the locale of the Postgres database is.

Locks: ACCESS EXCLUSIVE, for a moment: no row is touched. On SQLite writers wait for a moment.

Revision ID: 0004
Revises: 0003
Create Date: 2026-11-22 19:00:02+00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
reversible = False  # downgrade() forgets the versions, so ETags count from one again
squawk_exceptions = {
    "changing-column-type": "The type stays: another collation touches no row, and no index has the column."
}


def upgrade() -> None:
    """Add the one, and change the other on Postgres: SQLite has that order."""
    op.add_column("hero", sa.Column("version", sa.BigInteger(), server_default="1", nullable=False))
    if op.get_context().dialect.name != "sqlite":
        op.alter_column(
            "hero", "name", type_=sa.String(collation="C"), existing_type=sa.String(), existing_nullable=False
        )


def downgrade() -> None:
    """Forget the versions: a client's ETags count from one again, so it may take a hero for the one that it has."""
    if op.get_context().dialect.name != "sqlite":
        op.alter_column(
            "hero", "name", type_=sa.String(collation="default"), existing_type=sa.String(), existing_nullable=False
        )
    op.drop_column("hero", "version")
