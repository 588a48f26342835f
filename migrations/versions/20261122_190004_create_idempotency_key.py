"""Create the table of idempotency keys.

Why: it stores the response to a POST with an Idempotency-Key, so that a retry gets the same response and runs nothing.

Locks: none that blocks requests: the table is new.

Revision ID: 0006
Revises: 0005
Create Date: 2026-11-22 19:00:04+00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
reversible = False  # downgrade() drops the stored responses


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "idempotency_key",
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answer", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("scope", "key", name=op.f("idempotency_key_pkey")),
    )
    op.create_index(op.f("ix_idempotency_key_expires_at"), "idempotency_key", ["expires_at"])


def downgrade() -> None:
    """Drop the table. A retried POST runs again."""
    op.drop_table("idempotency_key")
