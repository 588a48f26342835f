"""${message}.

Why: the rule or query that needs this.

Locks: the strongest lock, what it blocks, and for how long per million rows.

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
Create Date: ${create_date}
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
% if branch_labels:
branch_labels = ${repr(branch_labels)}
% endif
% if depends_on:
depends_on = ${repr(depends_on)}
% endif
reversible = False  # True if downgrade() loses no data


def upgrade() -> None:
    """Describe the change."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Describe the change, and the data that is lost."""
    ${downgrades if downgrades else "pass"}
