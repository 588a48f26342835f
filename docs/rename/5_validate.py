"""Validate: require an alias in existing rows.

Why: the next revision needs a constraint that holds for all rows.

Locks: SHARE UPDATE EXCLUSIVE, while the table is scanned. It blocks no reads and writes.

Revision ID: rename_5
Revises: rename_4
Create Date: 2026-11-22 18:00:05+00:00
"""

from migrations import online

revision = "rename_5"
down_revision = "rename_4"
reversible = True


def upgrade() -> None:
    """Validate the constraint."""
    online.validate("hero", "hero_alias_check")


def downgrade() -> None:
    """Keep the constraint validated."""
