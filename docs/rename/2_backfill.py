"""Backfill: copy secret names to aliases.

Why: every hero gets an alias, so that a release can read that column alone.

Locks: ROW EXCLUSIVE, and the rows of one batch of 1,000 at a time.

Revision ID: rename_2
Revises: rename_1
Create Date: 2026-11-22 18:00:02+00:00
"""

from migrations import online

revision = "rename_2"
down_revision = "rename_1"
reversible = True


def upgrade() -> None:
    """Copy in batches."""
    online.backfill("hero", "UPDATE hero SET alias = secret_name WHERE alias IS NULL AND id BETWEEN :first AND :last")


def downgrade() -> None:
    """Keep the aliases: no release reads them."""
