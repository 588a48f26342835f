"""The heroes API."""
