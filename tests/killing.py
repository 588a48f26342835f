"""The service, but it is killed the first time that it is about to commit: `uvicorn tests.killing:app`."""

import os
import signal
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from app.main import app

__all__ = ["app"]

KILLED = Path(os.environ["KILLED"])


@event.listens_for(Engine, "before_cursor_execute")
def kill(*arguments: Any) -> None:
    """Be gone before the COMMIT is sent."""
    if arguments[2] == "COMMIT" and not KILLED.exists():
        KILLED.touch()
        os.kill(os.getpid(), signal.SIGKILL)
