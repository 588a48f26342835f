"""Validate: nor is any of those that were there.

Why: the constraint counts for all rows now.

Locks: SHARE UPDATE EXCLUSIVE, while the table is read: nobody who reads or writes waits for it.

Revision ID: rename_5
Revises: rename_4
Create Date: 2026-11-22 18:00:05+00:00
"""

from migrations import online

revision = "rename_5"
down_revision = "rename_4"
branch_labels = None
depends_on = None
reversible = True


def upgrade() -> None:
    """Read the table once."""
    online.validate("hero", "hero_alias_check")


def downgrade() -> None:
    """Leave it checked."""
