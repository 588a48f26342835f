"""${message}.

Why: say which rule or query this serves.

Locks: say what waits, in which lock's name, and for how long per million rows.

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
Create Date: ${create_date}
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}
reversible = False  # say True if downgrade() loses nothing


def upgrade() -> None:
    """Say what it does."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Say what it undoes, and what is lost."""
    ${downgrades if downgrades else "pass"}
