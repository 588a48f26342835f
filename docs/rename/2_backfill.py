"""Backfill: copy the secret names that no release has copied yet.

Why: from here on every hero has an alias, so the release after the next can read it.

Locks: ROW EXCLUSIVE, and each row for as long as its batch of a thousand takes.

Revision ID: rename_2
Revises: rename_1
Create Date: 2026-11-22 18:00:02+00:00
"""

from migrations import online

revision = "rename_2"
down_revision = "rename_1"
branch_labels = None
depends_on = None
reversible = True


def upgrade() -> None:
    """Copy them, batch by batch."""
    online.backfill("hero", "UPDATE hero SET alias = secret_name WHERE alias IS NULL AND id BETWEEN :first AND :last")


def downgrade() -> None:
    """Leave them: nobody reads them."""
