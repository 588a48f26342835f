"""Create the table of FastAPI's SQL tutorial, or adopt the one that its create_all has made.

Why: the tutorial's databases can move in with their rows. So this is its schema to the letter; what this service adds
comes in the revisions after it.

Locks: creating takes nothing that anybody waits for. Adopting reads the catalogue, whatever the number of rows, and
makes an index only where the tutorial's is missing: that takes SHARE on Postgres, and on both holds up writes, not
reads, for half a second per million rows and index. Measured with bench/upgrade.py on 2 cores.

Revision ID: 0001
Revises:
Create Date: 2026-11-22 12:34:54+00:00
"""

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
reversible = False  # downgrade() drops every hero

TRIGGERS = sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'hero'")
TUTORIAL = {
    "column id": "INTEGER NOT NULL, numbered by the database",
    "column name": "VARCHAR NOT NULL",
    "column age": "INTEGER",
    "column secret_name": "VARCHAR NOT NULL",
    "primary key": "id",
    "index ix_hero_age": "age",
    "index ix_hero_name": "name",
}


def upgrade() -> None:
    """Make the table unless it is there."""
    if context.is_offline_mode() or not sa.inspect(op.get_bind()).has_table("hero"):
        create()
    else:
        adopt()


def downgrade() -> None:
    """Drop the table, with every hero in it."""
    op.drop_table("hero")


def create() -> None:
    """Make the table with the columns in create_all's order."""
    op.create_table(
        "hero",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("age", sa.Integer(), nullable=True),
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("secret_name", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("hero_pkey")),
    )
    op.create_index(op.f("ix_hero_age"), "hero", ["age"])
    op.create_index(op.f("ix_hero_name"), "hero", ["name"])


def adopt() -> None:
    """Take the table over as it is, or refuse it and leave it alone."""
    found = describe(sa.inspect(op.get_bind()))
    # The chapters of the tutorial before the first index, or a create_all that was cut short.
    missing = [part for part in TUTORIAL if part.startswith("index ") and part not in found]
    differences = [
        f"  {part}: {found.get(part, 'none')} here, {TUTORIAL.get(part, 'none')} there"
        for part in sorted(TUTORIAL.keys() | found.keys())
        if part not in missing and found.get(part) != TUTORIAL.get(part)
    ]
    if differences:
        raise CommandError(
            "The table 'hero' is not the one of FastAPI's SQL tutorial, so it was left as it is:\n"
            + "\n".join(differences)
        )
    for part in missing:
        op.create_index(part.removeprefix("index "), "hero", [TUTORIAL[part]])


def describe(inspector: sa.Inspector) -> dict[str, str]:
    """Say what the table consists of, in the same words on both databases."""
    key = inspector.get_pk_constraint("hero")["constrained_columns"]
    parts = {"primary key": ", ".join(key)}
    for column in inspector.get_columns("hero"):
        words = column["type"].compile(inspector.dialect) + ("" if column["nullable"] else " NOT NULL")
        if [column["name"]] == key and column["default"] in {None, "nextval('hero_id_seq'::regclass)"}:
            numbered = column["default"] or inspector.dialect.name == "sqlite"
            words += ", numbered by the database" if numbered else ""
        elif column["default"] is not None:
            words += f" DEFAULT {column['default']}"
        parts[f"column {column['name']}"] = words
    for index in inspector.get_indexes("hero"):
        invalid = index.get("dialect_options", {}).get("postgresql_invalid")
        words = ", ".join(str(name) for name in index["column_names"])
        parts[f"index {index['name']}"] = words + " unique" * index["unique"] + " invalid" * bool(invalid)
    return parts | describe_constraints(inspector)


def describe_constraints(inspector: sa.Inspector) -> dict[str, str]:
    """Say what the tutorial has not: constraints, and the triggers that SQLite loses when a table is made anew."""
    parts = {f"check {check['name']}": check["sqltext"] for check in inspector.get_check_constraints("hero")}
    for unique in inspector.get_unique_constraints("hero"):
        parts[f"unique constraint {unique['name']}"] = ", ".join(unique["column_names"])
    for reference in inspector.get_foreign_keys("hero"):
        parts[f"foreign key {reference['name']}"] = ", ".join(reference["constrained_columns"])
    if inspector.dialect.name == "sqlite":
        parts |= {f"trigger {trigger.name}": "present" for trigger in op.get_bind().execute(TRIGGERS)}
    return parts
