"""Drop the index on names.

Why: the next revision changes the collation of the column, which would rebuild the index under an exclusive lock.

Locks: SHARE UPDATE EXCLUSIVE, which blocks no reads and writes. On SQLite it blocks writes briefly.

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-22 19:00:01+00:00
"""

from alembic import op

from migrations import online

revision = "0003"
down_revision = "0002"
reversible = True


def upgrade() -> None:
    """Drop the index."""
    online.drop_index(op.f("ix_hero_name"), "hero")


def downgrade() -> None:
    """Create the index."""
    online.create_index(op.f("ix_hero_name"), "hero", ["name"])
