"""Older revisions of this repository, to measure a change against."""

import io
import subprocess
import tarfile
from pathlib import Path

from bench.databases import ROOT


def resolve(revision: str) -> str:
    """Return the short name of a commit.

    Raises:
        SystemExit: git finds no such commit.
    """
    command = ("git", "rev-parse", "--verify", "--short", "--end-of-options", f"{revision}^{{commit}}")
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command; the revision can't be read as an option
    if git.returncode:
        raise SystemExit(f"git finds no commit {revision!r} here: {git.stderr.strip()}")
    return git.stdout.strip()


def check_out(commit: str, folder: Path) -> Path:
    """Write a commit's files into a folder of its own below `folder`, and return it.

    An archive, unlike a work tree, leaves nothing in .git that an interrupted run would have to remove.
    """
    command = ("git", "archive", "--format=tar", commit)
    git = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)  # noqa: S603 - a fixed command, on a name from `resolve`
    root = folder / f"revision-{commit}"
    with tarfile.open(fileobj=io.BytesIO(git.stdout)) as archive:
        archive.extractall(root, filter="data")
    return root
