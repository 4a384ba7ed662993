# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of generations: readable after a crash at any moment, and never taken for something else."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from unit.generation_model import attempt, digest, generation, history

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import model
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import store as _generation_store
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.model import Attempt, History
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.store import Store


class CrashError(Exception):
    pass


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the given one of the calls that change a file system fail, as if the power went."""
    left = [step]

    def counted(original: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise CrashError
            return original(*arguments, **named)

        return call

    for name in ("rename", "mkdir", "unlink", "fsync"):
        monkeypatch.setattr(_generation_store.os, name, counted(getattr(os, name)))


@pytest.mark.parametrize("step", range(14))
def test_crash_while_an_attempt_begins_or_is_confirmed_leaves_the_former_readable(tmp_path: Path, step: int) -> None:
    store = Store(str(tmp_path / "state"))
    store.begin(attempt(1, 0), generation(1, 0), b"one")
    store.confirm(1, "a1")
    with pytest.MonkeyPatch.context() as patched:
        crash_at(patched, step)
        try:
            store.begin(attempt(2, 1), generation(2, 1), b"two")
            store.confirm(2, "a2")
        except CrashError:
            pass
    seen = store.read()
    assert seen.confirmed in (1, 2)
    assert seen.generations[1] == generation(1, 0)
    assert seen.digest == digest(seen.confirmed)
    assert Path(store.runtime(seen.confirmed)).read_bytes() == {1: b"one", 2: b"two"}[seen.confirmed]
    store.begin(attempt(2, seen.confirmed), generation(2, seen.confirmed), b"three")
    store.confirm(2, "again")
    assert (store.read().confirmed, store.read().attempt) == (2, None)


def test_a_write_that_ends_at_any_byte_leaves_the_former_readable(tmp_path: Path) -> None:
    """Power may go between any two bytes of any file that begins or confirms an attempt."""
    store = Store(str(tmp_path / "state"))
    store.begin(attempt(1, 0), generation(1, 0), b"one")
    store.confirm(1, "a1")
    former = store.read()
    written = _generation_store.write
    lengths: list[int] = []

    def measured(path: str, content: bytes) -> None:
        lengths.append(len(content))
        written(path, content)

    def broken_off(call: int, size: int) -> Any:
        def write(path: str, content: bytes) -> None:
            nonlocal call
            call -= 1
            if call >= 0:
                written(path, content)
                return
            Path(f"{path}.new").write_bytes(content[:size])
            raise CrashError

        return write

    def attempted() -> None:
        store.begin(attempt(2, 1), generation(2, 1), b"two")
        store.confirm(2, "a2")

    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_generation_store, "write", measured)
        attempted()
    shutil.rmtree(tmp_path / "state")
    shutil.copytree(tmp_path / "copy", tmp_path / "state")
    assert len(lengths) == 4
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_generation_store.os, "fsync", lambda _descriptor: None)  # thousands of them
        for call, length in enumerate(lengths):
            for size in range(length):
                patched.setattr(_generation_store, "write", broken_off(call, size))
                with pytest.raises(CrashError):
                    attempted()
                seen = store.read()
                assert (seen.confirmed, seen.by, seen.generations[1]) == (1, "a1", former.generations[1])
                assert Path(store.runtime(1)).read_bytes() == b"one"
                assert seen.attempt in (None, attempt(2, 1))
                assert set(seen.generations) <= {1, 2}
    attempted()
    assert (store.read().confirmed, store.read().attempt) == (2, None)


def test_a_kill_at_any_system_call_leaves_a_readable_history(tmp_path: Path) -> None:
    """The process is killed at each of its calls that change a file system in turn (strace)."""
    kills = 0
    for name in ("mkdir", "rename", "unlink", "rmdir", "unlinkat", "write", "fsync"):
        for number in itertools.count(1):
            if not killed_at(tmp_path / "state", name, number):
                break
            kills += 1
    assert kills > 20


def killed_at(root: Path, name: str, number: int) -> bool:
    """Whether the story came to that call at all."""
    store = Store(str(root))
    store.begin(attempt(1, 0), generation(1, 0), b"one")
    store.confirm(1, "a1")
    strace = [
        "strace",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={name}",
        "-e",
        f"inject={name}:signal=KILL:when={number}",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*strace, sys.executable, "-c", _STORY, str(root)]
    if subprocess.run(command, env=environment, check=False).returncode == 0:
        assert os.listdir(root.parent) == []
        return False
    seen = store.read()
    assert seen.confirmed in (0, 1, 2)
    assert not seen.confirmed or seen.digest == {1: digest(1), 2: model.digest_of(())}[seen.confirmed]
    assert not seen.confirmed or Path(store.runtime(seen.confirmed)).read_bytes() in (b"one", b"two")
    assert not seen.attempt or seen.attempt.number in seen.generations
    store.begin(attempt(3, seen.confirmed), generation(3, seen.confirmed), b"three")
    store.confirm(3, "again")
    assert (store.read().confirmed, store.read().attempt) == (3, None)
    store.clear()
    assert os.listdir(root.parent) == []
    return True


# Generation 2, then back to 0.
_STORY = """
import sys
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.store import Store
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.model import Attempt, Generation, digest_of
store = Store(sys.argv[1])
store.begin(Attempt("a2", 2, 1, 0, "boot"), Generation(2, 1, digest_of(()), "now"), b"two")
store.confirm(2, "a2")
store.clear()
"""


@pytest.mark.parametrize("name", ["confirmed.json", "attempt.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "7", "\0" * 20, '{"number": 1, "unknown": 2}', '{"format": 99}'])
def test_record_that_cannot_be_read_is_an_error_that_names_the_file(tmp_path: Path, name: str, content: str) -> None:
    store = Store(str(tmp_path / "state"))
    store.begin(attempt(1, 0), generation(1, 0), b"one")
    store.confirm(1, "a1")
    (tmp_path / "state" / name).write_text(content, encoding="utf-8")
    with pytest.raises(OverlayError, match=str(tmp_path / "state" / name)):
        store.read()
    if "unknown" in content or "format" in content:  # another release's, which is not lost
        with pytest.raises(OverlayError, match="release"):
            store.read(mending=True)
        return
    seen = store.read(mending=True)
    assert (seen.confirmed, seen.attempt) == (0 if name == "confirmed.json" else 1, None)
    assert model.next_number(seen) == 2
    store.begin(attempt(2, 0), generation(2, 0), b"two")
    store.confirm(2, "a2")
    assert store.read().confirmed == 2


def test_record_on_a_disk_that_fails_is_not_taken_for_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "state"))
    store.begin(attempt(1, 0), generation(1, 0), b"one")
    store.confirm(1, "a1")
    opened = open

    def failing(path: Any, *arguments: Any, **named: Any) -> Any:
        if str(path).endswith("confirmed.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return opened(path, *arguments, **named)

    monkeypatch.setattr("builtins.open", failing)
    for mending in (False, True):
        with pytest.raises(OverlayError, match=r"confirmed\.json. Reason: EIO"):
            store.read(mending)


def test_records_of_release_1_0_0_stay_readable_and_say_their_format_from_now_on(tmp_path: Path) -> None:
    folder = tmp_path / "state/generations/1"
    folder.mkdir(parents=True)
    record = asdict(generation(1, 0))
    for path, members in (
        (folder / "manifest.json", record),
        (tmp_path / "state/confirmed.json", {"number": 1, "by": "a1", "left": 0}),
    ):
        path.write_text(json.dumps(members), encoding="utf-8")
    (folder / "runtime.zip").write_bytes(b"one")
    store = Store(str(tmp_path / "state"))
    assert store.read() == history(1, confirmed=1, by="a1")
    store.begin(attempt(2, 1), generation(2, 1), b"two")
    store.confirm(2, "a2")
    for name in ("confirmed.json", "generations/2/manifest.json"):
        assert json.loads((tmp_path / "state" / name).read_text())["format"] == model.FORMAT
    # Back at the old generation, the old release reads what is there.
    store.confirm(1, "restored")
    assert json.loads((tmp_path / "state/confirmed.json").read_text()) == {"number": 1, "by": "restored", "left": 0}
    assert json.loads((folder / "manifest.json").read_text()) == json.loads(json.dumps(record))


def test_attempt_that_release_1_0_0_began_is_known_with_its_code(tmp_path: Path) -> None:
    root = tmp_path / "state"
    folder = root / "generations/1"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(asdict(generation(1, 0))), encoding="utf-8")
    (folder / "runtime.zip").write_bytes(b"old")
    members = {"identity": "old", "number": 1, "former": 0, "deadline": 7, "boot": "b", "was_on": False}
    (root / "attempt.json").write_text(json.dumps(members), encoding="utf-8")
    store = Store(str(root))
    seen = store.read()
    assert seen.attempt == Attempt("old", 1, 0, 7, "b", False)
    assert Path(store.present_runtime(seen)).read_bytes() == b"old"
    store.begin(attempt(1, 0), generation(1, 0), b"new")
    assert Path(store.present_runtime(store.read())).read_bytes() == b"new"
    store.give_up()
    assert os.listdir(root / "generations") == []


def test_a_record_whose_calls_do_not_fit_its_digest_is_never_gone_to(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "state"))
    for number in (1, 2):
        store.begin(attempt(number, number - 1), generation(number, number - 1), b"")
        store.confirm(number, f"a{number}")
    manifest = tmp_path / "state/generations/2/manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("10.0.0.2", "10.0.0.3"), encoding="utf-8")
    seen = store.read()
    assert (sorted(seen.generations), sorted(seen.damaged), seen.confirmed) == ([1], [2], 2)
    for wanted in ("previous", "former", "2"):
        with pytest.raises(OverlayError, match=f"no history of it that can be read: {manifest}"):
            model.target_of(seen, wanted)
    with pytest.raises(OverlayError, match="no history"):
        model.calls_to(seen, 2, {})
    assert model.target_of(seen, "1") == 1
    assert model.next_number(seen) == 3


def test_new_way_back_is_there_before_the_former_goes(tmp_path: Path) -> None:
    """Wherever it breaks off, some attempt is recorded whose code and calls are there, and whose watcher runs."""
    store = Store(str(tmp_path / "state"))
    store.begin(attempt(1, 0), generation(1, 0), b"one")

    def refused() -> None:
        assert Path(store.runtime_of(attempt(2, 0))).read_bytes() == b"two"
        raise OverlayError("start the node's own way back", "it", "no process", "Look.")

    with pytest.raises(OverlayError, match="no process"):
        store.begin(attempt(2, 0), generation(2, 0), b"two", refused)
    seen = store.read()
    assert seen.attempt == attempt(1, 0)
    assert seen.generations[1] == generation(1, 0)
    assert Path(store.runtime_of(attempt(1, 0))).read_bytes() == b"one"


def test_attempt_of_the_same_number_does_not_touch_the_code_that_runs(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "state"))
    store.begin(attempt(1, 0), generation(1, 0), b"one")
    running = store.runtime_of(attempt(1, 0))
    second = replace(attempt(1, 0), identity="second")
    store.begin(second, generation(1, 0), b"two")
    assert (Path(running).read_bytes(), Path(store.runtime_of(second)).read_bytes()) == (b"one", b"two")
    store.confirm(1, "second")
    assert Path(store.runtime(1)).read_bytes() == b"two"
    assert sorted(os.listdir(tmp_path / "state")) == ["attempts", "confirmed.json", "generations", "spare"]
    assert os.listdir(tmp_path / "state/attempts") == []


def test_generation_that_is_made_again_gets_the_new_code_when_that_is_confirmed(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "state"))
    store.begin(attempt(1, 0), generation(1, 0), b"one")
    store.confirm(1, "a1")
    again = Attempt("again", 1, 1, 0, "boot")
    store.begin(again, None, b"two")
    assert Path(store.runtime(1)).read_bytes() == b"one"
    store.confirm(1, "again")
    assert Path(store.runtime(1)).read_bytes() == b"two"
    assert store.read().generations[1] == generation(1, 0)


def test_switched_off_outlasts_confirmations_and_rollbacks_and_goes_with_the_overlay(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "state"))
    store.begin(attempt(1, 0), generation(1, 0), b"one")
    store.confirm(1, "a1")
    assert not store.read().switched_off
    store.switch_off("now")
    store.begin(attempt(2, 1), generation(2, 1), b"two")
    store.confirm(2, "a2")
    assert store.read().switched_off
    store.switch_on()
    assert not store.read().switched_off
    store.switch_off("now")
    store.clear()
    assert store.read() == History()


def test_only_the_last_three_stay_on_disk(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "state"))
    for number in range(1, 7):
        store.begin(attempt(number, number - 1), generation(number, number - 1), b"")
        store.confirm(number, f"a{number}")
    assert sorted(os.listdir(tmp_path / "state/generations")) == ["4", "5", "6"]
    store.begin(attempt(7, 6), generation(7, 6), b"")
    store.give_up()
    assert sorted(store.read().generations) == [4, 5, 6]
    store.clear()
    assert not store.exists()
