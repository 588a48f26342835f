"""Index: create the index on alias.

Why: queries that filter or sort by alias need it.

Locks: SHARE UPDATE EXCLUSIVE, which blocks no reads and writes.

Revision ID: rename_3
Revises: rename_2
Create Date: 2026-11-22 18:00:03+00:00
"""

from alembic import op

from migrations import online

revision = "rename_3"
down_revision = "rename_2"
reversible = True


def upgrade() -> None:
    """Create the index."""
    online.create_index(op.f("ix_hero_alias"), "hero", ["alias"])


def downgrade() -> None:
    """Drop the index."""
    online.drop_index(op.f("ix_hero_alias"), "hero")
