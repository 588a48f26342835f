"""Check that every hero can be served.

Why: earlier releases adopted databases without looking at their rows. A list fails on a name or age that is not of its
column's type, which SQLite stores, and a walk by name on one that has a NUL or is very long.

Locks: none that blocks requests: it reads the table. On SQLite it blocks writes meanwhile.

Revision ID: 0007
Revises: 0006
Create Date: 2026-11-28 12:00:01+00:00
"""

from alembic import context, op

from migrations import guards

revision = "0007"
down_revision = "0006"
reversible = True


def upgrade() -> None:
    """Refuse rows that can't be served. The schema stays as it is."""
    if not context.is_offline_mode():
        guards.refuse_unservable_rows(op.get_bind(), "hero", texts=["name"], integers=["age"])


def downgrade() -> None:
    """Do nothing."""
