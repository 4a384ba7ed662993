# SPDX-License-Identifier: GPL-3.0-or-later
"""What a release must be: one version in all places, and an archive of what users need."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RELEASE = runpy.run_path(str(ROOT / "tools/release"))
GOOD: dict[str, Any] = {
    "version": "1.1.0",
    "changelog": {"releases": {"1.0.0": {}, "1.1.0": {}}},
    "fragments": [],
    "tags": ["v1.0.0", "v1.1.0"],
    "here": ["v1.1.0"],
    "readme": "install build/ebpf-overlay-1.1.0.tar.gz",
}


def test_release_that_agrees() -> None:
    assert RELEASE["disagreements"](**GOOD) == []
    assert RELEASE["disagreements"](**{**GOOD, "tags": ["v1.0.0"], "here": []}) == [], "the tag comes last"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"changelog": {"releases": {"1.0.0": {}}}}, "has no release 1.1.0. Run 'antsibull-changelog release'"),
        ({"fragments": ["b.yml", "a.yml"]}, "are in no release: a.yml, b.yml"),
        ({"here": []}, "v1.1.0 is at another commit"),
        ({"here": ["v1.0.0", "v1.1.0"]}, "tagged v1.0.0, and galaxy.yml says 1.1.0"),
        ({"readme": "ebpf-overlay-1.0.0.tar.gz"}, "README.md installs another archive"),
    ],
    ids=["changelog", "fragments", "tag elsewhere", "another tag", "readme"],
)
def test_disagreement_is_named(changed: dict[str, Any], words: str) -> None:
    (told,) = RELEASE["disagreements"](**(GOOD | changed))
    assert words in told


def test_faults_of_an_archive_are_named() -> None:
    needed = list(RELEASE["NEEDED"])
    assert RELEASE["faults"]([*needed, "plugins/modules/bpffs.py"], 1000) == []
    workshop = [
        ".gitignore",
        "docs/status.png",
        "plugins/__pycache__/x.pyc",
        "tests/unit/test_codec.py",
        "tools/release",
    ]
    told = RELEASE["faults"]([*needed[1:], *workshop], 2 << 20)
    assert [line.split(": ")[-1] for line in told[:5]] == [f"{name}." for name in workshop]
    assert told[5:] == [f"It lacks {needed[0]}.", "It has 2097152 bytes, 1048576 at most are wanted."]
