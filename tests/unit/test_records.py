# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of all kinds: what cannot be read is an error that names it, and never taken for something that is absent."""

from __future__ import annotations

import errno
import json
import os
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from unit.generation_model import attempt, generation

from ansible_collections.ebpf.overlay.plugins.module_utils._core import records as _records
from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.records import DamagedRecordError
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.model import FORMAT, Attempt
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.store import RECORDS, Store, Trouble
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.stored_runtime import FORMAT_FILE, StoredRuntime
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks import records as qdisc_records
from ansible_collections.ebpf.overlay.plugins.module_utils._objects.state import BUILD, Observed, OtherEntry, Record


def four_parts(error: OverlayError, path: object) -> bool:
    return error.target == str(path) and all((error.doing, error.reason, error.advice))


@pytest.mark.parametrize("record", [attempt(2, 1), generation(2, 1), Trouble("a", 1, ["so"], "now")])
def test_record_says_its_format_and_one_without_is_that_of_earlier_releases(tmp_path: Path, record: Any) -> None:
    path = tmp_path / "record.json"
    assert RECORDS.read(type(record), str(path)) is None
    path.write_bytes(RECORDS.encode(record))
    assert json.loads(path.read_bytes())["format"] == RECORDS.of(str(path)) == FORMAT
    told = json.loads(json.dumps(asdict(record)))
    read: Any = RECORDS.read(type(record), str(path))
    assert asdict(read) == told
    path.write_bytes(RECORDS.encode(record, known_to_first_release=True))
    assert "format" not in json.loads(path.read_bytes())
    read = RECORDS.read(type(record), str(path))
    assert (asdict(read), RECORDS.of(str(path))) == (told, 1)


@pytest.mark.parametrize(
    "changed",
    [{"number": "2"}, {"number": True}, {"number": None}, {"number": 2.5}, {"identity": ["a"]}, {"was_on": 1},
     {"format": 0}, {"format": "2"}, {"format": True}, {"format": None}],
)  # fmt: skip
def test_member_of_another_kind_is_damage(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "attempt.json"
    path.write_text(json.dumps({**asdict(attempt(2, 1)), **changed}), encoding="utf-8")
    with pytest.raises(DamagedRecordError) as told:
        RECORDS.read(Attempt, str(path))
    assert four_parts(told.value, path)
    assert next(iter(changed)) in told.value.reason


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000, b'{"identity": "a"}'])
def test_content_that_is_lost_is_damage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "attempt.json"
    path.write_bytes(content)
    with pytest.raises(DamagedRecordError) as told:
        RECORDS.read(Attempt, str(path))
    assert four_parts(told.value, path)


def test_newer_format_is_no_damage_and_names_the_release_to_use(tmp_path: Path) -> None:
    path = tmp_path / "attempt.json"
    path.write_text(json.dumps({**asdict(attempt(2, 1)), "format": FORMAT + 1}), encoding="utf-8")
    for read in (lambda: RECORDS.read(Attempt, str(path)), lambda: RECORDS.of(str(path))):
        with pytest.raises(OverlayError, match=f"format is {FORMAT + 1}, and this release knows those up to") as told:
            read()
        assert four_parts(told.value, path)
        assert not isinstance(told.value, DamagedRecordError)


def failing_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    looked = os.lstat

    def lstat(path: Any, *arguments: Any, **named: Any) -> Any:
        if str(path).endswith(name):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return looked(path, *arguments, **named)

    monkeypatch.setattr(_records.os, "lstat", lstat)


@pytest.mark.parametrize("name", ["switched-off.json", "runtime.zip"])
def test_what_a_failing_disk_does_not_tell_is_not_taken_for_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    store = Store(str(tmp_path / "state"))
    store.begin(attempt(1, 0), generation(1, 0), b"one")
    store.switch_off("now")
    failing_disk(monkeypatch, name)
    with pytest.raises(OverlayError, match="EIO") as told:
        store.switched_off() if name == "switched-off.json" else store.runtime_of(attempt(1, 0))
    assert told.value.target.endswith(name)
    assert all((told.value.doing, told.value.reason, told.value.advice))


def test_history_that_cannot_be_looked_for_is_taken_off_with_the_overlay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "state"))
    assert not store.exists()
    failing_disk(monkeypatch, "state")
    assert store.exists()


def test_code_of_a_later_release_is_not_asked(tmp_path: Path) -> None:
    path = tmp_path / "runtime.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(FORMAT_FILE, f"{FORMAT + 1}\n")
    with pytest.raises(OverlayError, match=f"format is {FORMAT + 1}") as told:
        StoredRuntime(str(path), None).rehearse("on")
    assert four_parts(told.value, path)


def test_build_record_of_a_later_release_is_not_taken_for_somebody_elses() -> None:
    record = f"format=2;{Record('0' * 64, {}, {}).encode()}"
    with pytest.raises(OverlayError, match="its format is 2") as told:
        Observed("/pins", {BUILD: OtherEntry(BUILD, record)})
    assert four_parts(told.value, f"/pins/{BUILD}")


def test_qdisc_records_of_a_later_release_are_not_taken_for_absent(tmp_path: Path) -> None:
    qdisc_records.note(7, "cali-7", str(tmp_path))
    (tmp_path / "clsact-another-boot").touch()
    (tmp_path / "somebody-elses").touch()
    assert qdisc_records.records(str(tmp_path)) == {(7, "cali-7")}
    garbled = f"{next(path.name for path in tmp_path.iterdir() if 'cali-7' in path.name).rpartition('-7-')[0]}-x"
    for name in ("clsact2-of-another-kind", garbled):
        (tmp_path / name).touch()
        with pytest.raises(OverlayError) as told:
            qdisc_records.records(str(tmp_path))
        assert four_parts(told.value, tmp_path / name)
        (tmp_path / name).unlink()


def test_folder_of_qdisc_records_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    assert qdisc_records.records(str(tmp_path / "absent")) == frozenset()
    (tmp_path / "file").touch()
    with pytest.raises(OverlayError, match="ENOTDIR") as told:
        qdisc_records.records(str(tmp_path / "file"))
    assert four_parts(told.value, tmp_path / "file")
