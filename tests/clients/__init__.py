"""Clients that are generated from the schema."""
