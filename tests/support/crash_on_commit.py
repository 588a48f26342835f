"""The service, killed just before its first COMMIT: `uvicorn tests.support.crash_on_commit:app`.

KILLED names a file that is created then, so that the next process is not killed.
"""

import os
import signal
from pathlib import Path

from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine

from app.main import app

__all__ = ["app"]

KILLED = Path(os.environ["KILLED"])


@event.listens_for(Engine, "commit")
def kill_before_first_commit(_: Connection) -> None:
    if not KILLED.exists():
        KILLED.touch()
        os.kill(os.getpid(), signal.SIGKILL)
