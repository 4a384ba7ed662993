# SPDX-License-Identifier: GPL-3.0-or-later
"""What docs/development.md says of this clone is so."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/development.md").read_text(encoding="utf-8")
# Change -> how many files it may touch.
MOST = {"one counter more": 3, "parsing a further protocol": 5}


def section(title: str) -> str:
    return DOCUMENT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_every_folder_is_listed_and_there() -> None:
    """Two levels deep, and what lies in files of a place alone."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    folders = {"/".join(file.split("/")[:-1][:2]) for file in files if "/" in file}
    told = {
        name
        for title in ("Folders", "Tests")
        for row in re.findall(r"^\| (`.*?) \|", section(title), re.M)
        for name in re.findall(r"`([^`]+)`", row)
    }
    assert folders - told == set()
    assert [name for name in told if not (ROOT / name).is_dir()] == []


def test_changes_touch_the_files_that_are_told() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", section("Changes and the files that they touch"), re.M)
    limits = {change: most for change, _files in rows for name, most in MOST.items() if change.startswith(name)}
    assert len(limits) == len(MOST) == len(rows) - 1  # one is the head
    for change, files in rows:
        if change in limits:
            named = re.findall(r"`((?:plugins|roles|tools)/[^`]+\.\w+)`", files)
            assert 0 < len(named) + ("the C file" in files) <= limits[change]
            assert [name for name in named if not (ROOT / name).is_file()] == []


def test_example_is_the_one_that_is_tested() -> None:
    licence, example = (ROOT / "tests/integration/without_ansible.py").read_text(encoding="utf-8").split("\n", 1)
    assert "SPDX" in licence
    assert f"```python\n{example}```\n" in section("Resources without Ansible")
    assert len(example.splitlines()) < 30
