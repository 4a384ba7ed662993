# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that watches an attempt: nothing ends it but the attempt, and the kernel's path is left in any case."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.tc_sandbox import PYTHON, Sandbox, at, environment, returns

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import model
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.model import Attempt, Generation
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.store import Store
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.machine import boot_id
from ansible_collections.ebpf.overlay.plugins.plugin_utils import _runtime

UTILS = "ansible_collections.ebpf.overlay.plugins.module_utils"
CONTROL = f"{PIN_DIR}/control"
MAKE_CONTROL = f"""
import os, sys
from {UTILS}._kernel import bpf_maps as bpf
pin, value = sys.argv[1], bytes.fromhex(sys.argv[2])
os.makedirs(os.path.dirname(pin), exist_ok=True)
fd = bpf.map_create(bpf.MAP_TYPE_ARRAY, 4, len(value), 1, name="control")
bpf.map_update(fd, bytes(4), value)
if "frozen" in sys.argv:
    bpf.map_freeze(fd)
bpf.obj_pin(fd, pin)
"""
READ_CONTROL = f"""
import sys
from {UTILS}._kernel import bpf_maps as bpf
fd = bpf.obj_get(sys.argv[1])
print(bpf.map_lookup(fd, bytes(4), bpf.map_info(fd).value_size).hex())
"""
WATCH = f"""
import sys
from {UTILS}._generations import watch as _watch
from {UTILS}._generations.store import Store
_watch.PAUSE = 0.1
_watch.watch(Store(sys.argv[1]), sys.argv[2])
"""
OURS = f"{PIN_DIR}/from_uplink"
ON_64 = b"\1" * 64


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox("ovl-way-back")
    yield made
    made.close()


def make_control(sandbox: Sandbox, value: bytes, *options: str) -> None:
    sandbox.python(MAKE_CONTROL, CONTROL, value.hex(), *options)


def control(sandbox: Sandbox) -> bytes:
    return bytes.fromhex(sandbox.python(READ_CONTROL, CONTROL))


def attach_ours_and_theirs(sandbox: Sandbox) -> None:
    sandbox.load("theirs")
    sandbox.python(
        f"from {UTILS}._kernel import bpf_maps as bpf\n"
        f"bpf.obj_pin(bpf.prog_load({returns(-1, 1)!r}, 'from_uplink', 3), {OURS!r})"
    )
    theirs = sandbox.module("tc_bpf_attach", attachments=[at("cali1", "theirs", priority=7)], owner="theirs")
    assert theirs.get("changed"), theirs
    for mechanism, interface in (("clsact", "eth0"), ("tcx", "cali2")):
        done = sandbox.module(
            "tc_bpf_attach", attachments=[{"interface": interface, "program": OURS}], mechanism=mechanism
        )
        assert done.get("changed"), done


def hooks(sandbox: Sandbox) -> list[str]:
    """The owners of what is attached."""
    found = sandbox.module("tc_bpf_info")["interfaces"]
    return sorted(entry["owner"] for one in found for way in ("ingress", "egress") for entry in one[way])


class Watched:
    """The watcher as it runs on a node, on a store below ``root``."""

    def __init__(self, sandbox: Sandbox, root: Path) -> None:
        self.sandbox, self.store = sandbox, Store(str(root))
        self.process: subprocess.Popen[str] | None = None

    def begin(self, former: Generation | None, seconds: float) -> None:
        """The attempt 2, from ``former`` or from nothing, which is over after so many seconds."""
        number, packed = former.number if former else 0, _runtime.pack()
        if former:
            first = Attempt("a1", number, 0, 1 << 62, boot_id())
            self.store.begin(first, former, packed)
            self.store.confirm(number, "a1")
        deadline = time.monotonic_ns() + int(seconds * 1e9)
        wanted = Generation(2, number, model.digest_of(()), "now")
        self.store.begin(Attempt("a2", 2, number, deadline, boot_id(), was_on=False), wanted, packed, self.start)

    def start(self) -> None:
        command = self.sandbox.command(PYTHON, "-c", WATCH, self.store.root, "a2")
        self.process = subprocess.Popen(command, env=environment(), cwd="/", text=True, stderr=subprocess.PIPE)

    def runs(self) -> bool:
        assert self.process
        return self.process.poll() is None

    def await_(self, what: Callable[[], Any], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, what
            time.sleep(0.1)

    def ended(self) -> None:
        assert self.process
        assert self.process.wait(60) == 0, self.process.stderr and self.process.stderr.read()


@pytest.fixture
def watched(sandbox: Sandbox, tmp_path: Path) -> Iterator[Watched]:
    made = Watched(sandbox, tmp_path / "state")
    yield made
    if made.process:
        made.process.kill()
        made.process.wait()


def test_entry_of_another_size_is_never_given_to_the_kernel(sandbox: Sandbox) -> None:
    make_control(sandbox, ON_64)
    code, said = sandbox.job(f"from {UTILS}._datapath.control import read_control\nread_control({PIN_DIR!r})")
    assert code != 0
    assert "values of 64 instead of 4 and 24" in said
    code, said = sandbox.job(
        f"from {UTILS}._datapath.control import write_control\nfrom {UTILS}._datapath.mode import Control, SetControl\n"
        f"write_control({PIN_DIR!r}, SetControl(Control('on')))"
    )
    assert code != 0
    assert "of another layout" in said
    assert control(sandbox) == ON_64


def test_mode_off_works_on_every_layout(sandbox: Sandbox) -> None:
    make_control(sandbox, ON_64)
    refused = sandbox.module("overlay_mode", mode="on")
    assert "of another release" in refused["msg"]
    assert sandbox.module("overlay_mode", check=True, mode="off")["changed"]
    assert control(sandbox) == ON_64
    assert sandbox.module("overlay_mode", mode="off")["changed"]
    assert control(sandbox) == bytes(64)
    assert not sandbox.module("overlay_mode", mode="off")["changed"]


def test_last_resort_switches_off_what_it_cannot_decode(sandbox: Sandbox) -> None:
    make_control(sandbox, ON_64)
    attach_ours_and_theirs(sandbox)
    before = hooks(sandbox)
    sandbox.python(f"from {UTILS}._datapath.last_resort import kernels_path\nkernels_path()")
    assert control(sandbox) == bytes(64)
    assert hooks(sandbox) == before == ["ebpf.overlay", "ebpf.overlay", "theirs"]


def test_last_resort_detaches_what_it_cannot_switch_off(sandbox: Sandbox) -> None:
    make_control(sandbox, ON_64, "frozen")
    attach_ours_and_theirs(sandbox)
    sandbox.python(f"from {UTILS}._datapath.last_resort import kernels_path\nkernels_path()")
    assert hooks(sandbox) == ["theirs"]


@pytest.mark.parametrize("content", ['{"format": 99}', "{", '{"identity": "a2", "later": 1}'])
def test_record_that_cannot_be_read_for_a_moment_does_not_end_the_watcher(watched: Watched, content: str) -> None:
    watched.begin(None, seconds=8)
    record = Path(watched.store.root, "attempt.json")
    time.sleep(1)
    written = record.read_bytes()
    record.write_text(content, encoding="utf-8")
    time.sleep(1.5)
    assert watched.runs()
    record.write_bytes(written)
    watched.ended()
    assert not watched.store.exists()  # it went back to generation 0


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("lost", ["{", '{"identity": "a2", "deadline": "soon"}'])
def test_record_that_is_lost_ends_the_attempt_in_time_and_not_the_watcher(
    watched: Watched, number: int, lost: str
) -> None:
    watched.begin(Generation(1, 0, model.digest_of(()), "now") if number else None, seconds=8)
    time.sleep(3)
    Path(watched.store.root, "attempt.json").write_text(lost, encoding="utf-8")
    watched.ended()
    assert watched.store.exists() == bool(number)
    assert (watched.store.read().confirmed, watched.store.read().attempt) == (number, None)
    assert watched.store.trouble() is None


def test_way_back_that_keeps_failing_ends_on_the_kernels_path_and_goes_on(sandbox: Sandbox, watched: Watched) -> None:
    """Its former generation calls a module that fails; later somebody repairs that."""
    folder = Path(watched.store.root).parent / "made"
    calls = ({"module": "bpffs", "arguments": {"path": str(folder / "not/there")}},)
    former = Generation(1, 0, model.digest_of(calls), "now", calls)
    make_control(sandbox, ON_64)
    attach_ours_and_theirs(sandbox)
    watched.begin(former, seconds=1)
    watched.await_(lambda: (told := watched.store.trouble()) and told.tries >= 3)
    assert watched.runs()
    assert hooks(sandbox) == ["theirs"]
    assert control(sandbox) == bytes(64)
    told = watched.store.trouble()
    assert told
    assert (told.attempt, "bpffs" in told.reasons[0], "filters were taken off" in told.reasons[1]) == ("a2", True, True)
    # What was in its way is repaired: a generation without calls.
    manifest = Path(watched.store.root, "generations/1/manifest.json")
    manifest.write_text(
        json.dumps({"number": 1, "former": 0, "digest": model.digest_of(()), "when": "now", "format": 2}),
        encoding="utf-8",
    )
    watched.await_(lambda: not watched.runs(), 120)
    assert watched.store.read().confirmed == 1
    assert watched.store.trouble() is None


def test_lease_of_an_earlier_attempt_does_not_end_a_new_one(sandbox: Sandbox) -> None:
    """Both have the same number, which the control entry alone knows."""
    now = time.monotonic_ns()
    deadline = now - 1_000_000_000
    value = deadline.to_bytes(8, "little") + (2).to_bytes(4, "little") + (1).to_bytes(4, "little")
    make_control(sandbox, value + (1).to_bytes(4, "little") + bytes(4))
    code = f"""
from {UTILS}._generations.model import Attempt
from {UTILS}._generations.way_back import overdue
from {UTILS}._kernel.machine import boot_id
print([overdue(Attempt("a", 1, 0, 1 << 62, boot_id(), lease=lease)) for lease in (0, {deadline})])
"""
    assert sandbox.python(code) == "[True, False]\n"


def test_watching_costs_next_to_nothing_however_large_the_generations_are(tmp_path: Path) -> None:
    entries = [{"key": f"10.{n >> 8}.{n & 255}.0/24", "value": {"uplink": 2}} for n in range(4000)]
    calls = ({"module": "bpf_map_sync", "arguments": {"map": "/p/peers", "entries": entries}},)
    store = Store(str(tmp_path / "state"))
    for number in range(1, 5):
        made = Generation(number, number - 1, model.digest_of(calls), "now", calls)
        store.begin(Attempt(f"a{number}", number, number - 1, 1 << 62, "boot"), made, b"")
        if number < 4:
            store.confirm(number, f"a{number}")
    code = f"""
import sys, time
from {UTILS}._generations.store import Store
from {UTILS}._generations.watch import _Watcher
from {UTILS}._generations import way_back as _way_back
_way_back.boot_id = lambda: "boot"
watcher = _Watcher(Store(sys.argv[1]), "a4")
began = time.process_time()
for _ in range(100):
    assert not watcher.look()
print((time.process_time() - began) * 10)
"""
    done = subprocess.run(
        [PYTHON, "-c", code, str(tmp_path / "state")], env=environment(), capture_output=True, text=True, check=True
    )
    print(f"{done.stdout.strip()} ms of CPU for each look")
    assert float(done.stdout) < 3  # it was 29 when each look read every manifest
