"""Remember what was answered under an Idempotency-Key.

Why: a request that is sent again is answered as before, instead of being done again.

Locks: none that anybody waits for: the table is new.

Revision ID: 0006
Revises: 0005
Create Date: 2026-11-22 19:00:04+00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
reversible = False  # downgrade() forgets the keys of a day


def upgrade() -> None:
    """Make the table."""
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
    """Drop it, with the keys of a day: a request that is sent again is done again."""
    op.drop_table("idempotency_key")
