# SPDX-License-Identifier: GPL-3.0-or-later
"""A second run of ``tc_bpf_attach`` changes nothing: counted where the modules enter the kernel, and by strace."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.tc_checks import steps_of
from integration.tc_sandbox import Sandbox, at

INTERFACES = 250
# What a run may do that changes nothing. The lock's file is the only thing that it makes, and it removes it.
READ_ONLY = {"BPF_OBJ_GET", "BPF_OBJ_GET_INFO_BY_FD", "BPF_PROG_QUERY"}
LOCK = 2


@pytest.fixture(scope="module")
def large() -> Iterator[Sandbox]:
    box = Sandbox("ovl-xtc-large", tuple(f"cali{number}" for number in range(INTERFACES)))
    box.load("one")
    yield box
    box.close()


@pytest.mark.parametrize("mechanism", ["clsact", "tcx"])
def test_on_250_interfaces(large: Sandbox, tmp_path: Path, mechanism: str) -> None:
    wanted = at("cali*", "one")
    first = steps_of(large, wanted, mechanism=mechanism)
    assert first > INTERFACES
    for purge in (False, True):
        assert steps_of(large, wanted, mechanism=mechanism, purge=purge) == LOCK

    log = tmp_path / "log"
    trace = ("strace", "-f", "-qq", "-o", str(log), "-e", "trace=bpf,sendto,sendmsg,mkdir,unlink,rmdir,rename,openat")
    again = large.separately("tc_bpf_attach", *trace, attachments=[wanted], mechanism=mechanism)
    assert (again["rc"], again["changed"], len(again["attachments"])) == (0, False, INTERFACES)
    said = log.read_text()
    commands = set(re.findall(r"bpf\((\w+)", said))
    assert "BPF_PROG_QUERY" in commands
    assert commands <= READ_ONLY
    messages = set(re.findall(r"nlmsg_type=(\w+)", said))
    assert "RTM_GETQDISC" in messages
    assert all("GET" in kind for kind in messages), messages
    changed = re.findall(r"^\d+ +(?:mkdir|rmdir|rename|unlink|openat)\((.*(?:O_WRONLY|O_RDWR|/).*)", said, re.MULTILINE)
    files = [line for line in changed if re.search(r'"/(run|sys)/', line) and "O_RDONLY" not in line]
    assert len(files) == LOCK
    assert all("/run/ebpf-overlay.lock" in line for line in files), files
