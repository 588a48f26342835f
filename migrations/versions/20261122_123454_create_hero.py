"""Create the table of FastAPI's SQL tutorial, or adopt the one that create_all has made.

Why: a database of the tutorial keeps its rows. So this is exactly the tutorial's schema; later revisions add to it.

Locks: none that blocks requests for a new table. Adoption reads the catalog and the rows, and creates an index only if
the tutorial's is missing. That takes a SHARE lock on Postgres, and on both databases blocks writes, not reads, for
0.5 s per million rows and index. Measured with bench/upgrade.py on 2 cores.

Revision ID: 0001
Revises:
Create Date: 2026-11-22 12:34:54+00:00
"""

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

from migrations import guards

revision = "0001"
down_revision = None
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
    """Create the table, or adopt the existing one."""
    if context.is_offline_mode() or not sa.inspect(op.get_bind()).has_table("hero"):
        create()
    else:
        adopt()


def downgrade() -> None:
    """Drop the table with all heroes."""
    op.drop_table("hero")


def create() -> None:
    """Create the table, with the columns in the order of create_all."""
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
    """Accept the existing table if it is the tutorial's, and create its missing indexes."""
    found = describe(sa.inspect(op.get_bind()))
    # Early chapters of the tutorial have no index, nor has an interrupted create_all.
    missing = [part for part in TUTORIAL if part.startswith("index ") and part not in found]
    differences = [
        f"  {part}: found {found.get(part, 'none')}, expected {TUTORIAL.get(part, 'none')}"
        for part in sorted(TUTORIAL.keys() | found.keys())
        if part not in missing and found.get(part) != TUTORIAL.get(part)
    ]
    if differences:
        raise CommandError(
            "The table 'hero' is not the one of FastAPI's SQL tutorial, so nothing was changed:\n"
            + "\n".join(differences)
        )
    guards.refuse_unservable_rows(op.get_bind(), "hero", texts=["name"], integers=["age"])
    for part in missing:
        op.create_index(part.removeprefix("index "), "hero", [TUTORIAL[part]])


def describe(inspector: sa.Inspector) -> dict[str, str]:
    """Describe the columns, the key and the indexes of the table, equally on both databases."""
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
    """Describe what the tutorial has not: constraints, and triggers, which a rebuild on SQLite loses."""
    parts = {f"check {check['name']}": check["sqltext"] for check in inspector.get_check_constraints("hero")}
    for unique in inspector.get_unique_constraints("hero"):
        parts[f"unique constraint {unique['name']}"] = ", ".join(unique["column_names"])
    for reference in inspector.get_foreign_keys("hero"):
        parts[f"foreign key {reference['name']}"] = ", ".join(reference["constrained_columns"])
    if inspector.dialect.name == "sqlite":
        parts |= {f"trigger {trigger.name}": "present" for trigger in op.get_bind().execute(TRIGGERS)}
    return parts
