"""Migrations: Alembic's environment and revisions. Revisions import `online` and `guards`."""
