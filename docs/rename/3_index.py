"""Index: find heroes by their alias.

Why: so that the release after the next can.

Locks: SHARE UPDATE EXCLUSIVE: nobody who reads or writes waits for it.

Revision ID: rename_3
Revises: rename_2
Create Date: 2026-11-22 18:00:03+00:00
"""

from alembic import op

from migrations import online

revision = "rename_3"
down_revision = "rename_2"
branch_labels = None
depends_on = None
reversible = True


def upgrade() -> None:
    """Build the index while others write."""
    online.create_index(op.f("ix_hero_alias"), "hero", ["alias"])


def downgrade() -> None:
    """Drop it while others read."""
    online.drop_index(op.f("ix_hero_alias"), "hero")
