"""Migrations: how the schema changes. Alembic reads env.py and versions/, revisions use online.py."""
