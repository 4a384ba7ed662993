# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit for the next boot is on the disk whole, or the former one is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.ebpf.overlay.plugins.module_utils._generations.watchdog import install_unit


def install(folder: Path, runtime: str) -> Path:
    file = folder / "way-back.service"
    install_unit(runtime, str(file), str(folder / "wants/way-back.service"))
    return file


def test_unit_runs_the_code_of_its_attempt_and_only_where_that_is_there(tmp_path: Path) -> None:
    for runtime in ("/first/runtime.zip", "/second/runtime.zip"):
        file = install(tmp_path, runtime)
        text = file.read_text(encoding="utf-8")
        assert f"ConditionPathExists={runtime}\n" in text
        assert f" {runtime} boot\n" in text
        assert (tmp_path / "wants/way-back.service").resolve() == file
        assert file.stat().st_mode & 0o777 == 0o644
    assert sorted(os.listdir(tmp_path)) == ["wants", "way-back.service"]


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_unit_that_cannot_be_written_leaves_the_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    former = install(tmp_path, "/first/runtime.zip").read_bytes()

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fails)
        with pytest.raises(OSError, match="No space"):
            install(tmp_path, "/second/runtime.zip")
    assert (tmp_path / "way-back.service").read_bytes() == former
    install(tmp_path, "/second/runtime.zip")
