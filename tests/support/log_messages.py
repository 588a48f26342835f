"""What the log has."""

import pytest


def messages_of(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    """Return the messages of a logger."""
    return [record.getMessage() for record in caplog.records if record.name == name]
