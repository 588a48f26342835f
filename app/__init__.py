"""The heroes API."""

from sqlmodel import SQLModel

# Postgres's own default names, so that a table made by create_all and one made by a migration are alike. They are here
# because a model takes them as they are when its file is imported.
SQLModel.metadata.naming_convention = {
    "ix": "ix_%(column_0_label)s",
    "pk": "%(table_name)s_pkey",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    "ck": "%(table_name)s_%(constraint_name)s_check",
}
