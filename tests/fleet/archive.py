# SPDX-License-Identifier: GPL-3.0-or-later
"""Clones of another time or with a change, to run plays from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .play import ROOT


def of_commit(commit: str, folder: Path) -> Path:
    """The files of a commit, in ``folder``. AssertionError where the history is not there, as in a shallow clone."""
    known = subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=ROOT, check=False)
    assert known.returncode == 0, f"This clone's history lacks commit {commit}: run git fetch --unshallow."
    return _unpacked(["git", "archive", commit], folder)


def of_this(folder: Path) -> Path:
    """The files of this clone that git knows, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    there = b"\0".join(name for name in listed.split(b"\0") if name and (ROOT / name.decode()).exists())
    return _unpacked(["tar", "--null", "--files-from=-", "--create"], folder, there)


def _unpacked(command: list[str], folder: Path, given: bytes = b"") -> Path:
    packed = subprocess.run(command, cwd=ROOT, check=True, input=given, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "--extract", "--directory", folder], input=packed, check=True)
    return folder


def changed(root: Path, file: str, old: str, new: str) -> None:
    """Replace a text that is in a file once."""
    text = (root / file).read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file} has {text.count(old)} times: {old}"
    (root / file).write_text(text.replace(old, new), encoding="utf-8")


def generated(root: Path) -> None:
    """Write what follows from its code, as a developer does."""
    subprocess.run([sys.executable, root / "tools/generate"], cwd=root, check=True, stdout=subprocess.DEVNULL)
