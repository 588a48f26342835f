"""A copy of the project, for tests that change its files."""

import shutil
from pathlib import Path

from tests.support.processes import ROOT


def copy_project(folder: Path, *left_out: str) -> Path:
    """Copy the project into a new folder, with what Python has compiled, which saves each process a third of a second.

    Args:
        folder: the new folder.
        left_out: names at any depth, beside databases, hidden files and those that Python is writing just now.
    """
    ignored = shutil.ignore_patterns(".*", "*.db*", "*.pyc.*", *left_out)
    return Path(shutil.copytree(ROOT, folder, ignore=ignored))
