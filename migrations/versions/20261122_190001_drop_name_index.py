"""Drop the index of names, which is built anew in another order.

Why: the column's order changes in the next revision. With the index, that would rebuild it while everybody waits.

Locks: SHARE UPDATE EXCLUSIVE: nobody who reads or writes waits for it. On SQLite writers wait for a moment.

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-22 19:00:01+00:00
"""

from alembic import op

from migrations import online

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
reversible = True


def upgrade() -> None:
    """Drop it while others read."""
    online.drop_index(op.f("ix_hero_name"), "hero")


def downgrade() -> None:
    """Build it while others write."""
    online.create_index(op.f("ix_hero_name"), "hero", ["name"])
