# SPDX-License-Identifier: GPL-3.0-or-later
"""``tc_bpf_attach`` with bad input, in races that it loses, and killed half way. Needs root."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import pytest
from integration.tc_checks import TCX_ATTACH, disturbed, parts, refused
from integration.tc_sandbox import PINS, PYTHON, Sandbox, arguments_of, at, environment, result, returns

pytest_plugins = ["integration.tc_fixtures"]


# -- bad input, lost races, kills -------------------------------------------------------------------------------------


def test_interface_that_does_not_exist(node: Sandbox) -> None:
    error = refused(node, at("cali1", "one"), at("eth9", "one"))
    assert error["errno"] == "ENODEV"
    assert "eth9" in error["target"]


def test_glob_that_matches_nothing_is_a_warning(node: Sandbox) -> None:
    result = node.both(at("tap*", "one"))
    assert not result["changed"]
    assert "tap*" in result["warnings"][0]


def test_program_of_another_type_and_pin_that_is_no_program(node: Sandbox) -> None:
    node.load("xdp", returns(2), prog_type=6)
    assert "type 6" in refused(node, at("eth0", "xdp"))["reason"]
    node.python(
        "from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf\n"
        f"bpf.obj_pin(bpf.map_create(2, 4, 4, 1), '{PINS}/map')"
    )
    assert "bpf-map" in refused(node, at("eth0", "map"))["reason"]
    assert "EACCES" in refused(node, {"interface": "eth0", "program": "/etc/hostname"})["reason"]


def test_lost_bpffs_is_named(node: Sandbox) -> None:
    wanted = {"interface": "eth0", "program": "/opt/nowhere/one"}
    dry = node.attach(wanted, check=True)
    assert dry["changed"]
    assert any("bpffs" in warning for warning in dry["warnings"])
    assert "bpffs" in parts(node.attach(wanted))["reason"]


def test_missing_capability_is_named(node: Sandbox) -> None:
    before = node.state()
    drop = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--")
    error = parts(node.separately("tc_bpf_attach", *drop, attachments=[at("eth0", "one")], mechanism="clsact"))
    assert "CAP_NET_ADMIN" in error["advice"]
    assert error["errno"] == "EPERM"
    assert node.state() == before


def test_values_out_of_range(node: Sandbox) -> None:
    assert "65536" in refused(node, at("eth0", "one", priority=65536))["target"]
    assert "owner" in refused(node, at("eth0", "one"), owner="a:b")["doing"]


# No library here, and no other interpreter that has it.
BARE = """
import importlib.util
from ansible_collections.ebpf.overlay.plugins.module_utils._core import shell
from ansible_collections.ebpf.overlay.plugins.modules import tc_bpf_attach
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "pyroute2" else found(name, *more)
shell.INTERPRETERS.clear()
tc_bpf_attach.main()
"""


def test_missing_pyroute2_is_named_by_its_package(node: Sandbox) -> None:
    """A dry run needs no library and tells the same changes; so does a run that changes nothing."""

    def bare(check: bool) -> dict[str, Any]:
        wanted = {"attachments": [at("eth0", "one")], "mechanism": "clsact"}
        return result(*node.job(BARE, stdin=arguments_of(check, wanted)))

    dry = bare(True)
    assert dry["changed"]
    assert any("python3-pyroute2" in warning for warning in dry["warnings"])
    before = node.state()
    assert "python3-pyroute2" in parts(bare(False))["reason"]
    assert node.state() == before
    real = node.attach(at("eth0", "one"), mechanism="clsact")
    assert (real["attachments"], real["diff"]) == (dry["attachments"], dry["diff"])
    again = bare(False)
    assert not again["changed"]
    assert again["rc"] == 0


def test_two_runs_at_once_do_not_mix(node: Sandbox) -> None:
    hold = (
        "import sys, time\n"
        "from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run\n"
        "with one_run():\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        node.command(PYTHON, "-c", hold), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    )
    assert other.stdout
    assert other.stdin
    assert other.stdout.readline() == b"held\n"
    error = parts(node.attach(at("eth0", "one"), lock_timeout=1))
    assert "another run" in error["reason"]
    waiting = subprocess.Popen(
        node.command(PYTHON, "-c", hold), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    )
    time.sleep(0.3)
    other.kill()  # the kernel releases the lock of a process that is killed
    assert waiting.stdout
    assert waiting.stdin
    assert waiting.stdout.readline() == b"held\n"
    waiting.stdin.close()
    waiting.wait()
    other.wait()
    assert node.attach(at("eth0", "one"))["changed"]
    assert "/run/ebpf-overlay.lock" not in node.state()


@pytest.mark.parametrize("mechanism", ["clsact", "tcx"])
def test_a_workload_that_goes_away_meanwhile_is_no_error(node: Sandbox, mechanism: str) -> None:
    node.sh("ip link add cali0 type veth peer name q0")
    last = 2 if mechanism == "clsact" else 0
    result = disturbed(node, last, "ip link del cali0", at("cali*", "one"), mechanism=mechanism)
    assert result["rc"] == 0, result
    assert any("cali0 went away" in warning for warning in result["warnings"])
    assert not node.attach(at("cali*", "one"), mechanism=mechanism)["changed"]


def test_a_named_interface_that_goes_away_meanwhile_is_an_error_that_names_it(node: Sandbox) -> None:
    node.sh("ip link add dum0 type veth peer name q0")
    result = disturbed(node, 1, "ip link del dum0", at("dum0", "one"), at("cali*", "one"), mechanism="clsact")
    error = parts(result)
    assert error["errno"] == "ENODEV"
    assert "dum0" in error["target"]
    assert not node.attach(at("cali*", "one"), mechanism="clsact")["changed"], "the others were taken care of"
    assert "dum0" not in node.state()


def test_a_workload_that_starts_meanwhile_is_left_to_the_next_run(node: Sandbox) -> None:
    result = disturbed(node, 1, "ip link add cali7 type veth peer name q7", at("cali*", "one"))
    assert result["rc"] == 0, result
    assert node.attach(at("cali*", "one"))["changed"]
    node.sh("ip link del cali7")


@pytest.mark.parametrize("mechanism", ["clsact", "tcx"])
def test_somebody_who_takes_the_place_meanwhile_keeps_it(node: Sandbox, mechanism: str) -> None:
    node.load("theirs", returns(-1, padding=7))
    node.sh("tc qdisc add dev eth0 clsact")
    theirs = f"tc filter add dev eth0 ingress prio 60000 handle 1 protocol all bpf da pinned {PINS}/theirs"
    if mechanism == "tcx":
        theirs = f"{PYTHON} -c '{TCX_ATTACH}' /sys/fs/bpf/foreign/link eth0 46 {PINS}/theirs"
    error = parts(disturbed(node, 0, theirs, at("eth0", "one"), mechanism=mechanism))
    assert error["errno"] == ("EEXIST" if mechanism == "clsact" else "ESTALE")
    assert "ebpf.overlay:one" not in str(node.filters("eth0"))


# A kernel that does not know the attach type.
NO_TCX = """
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import tcx
from ansible_collections.ebpf.overlay.plugins.modules import tc_bpf_attach
tcx.supported = lambda: False
tc_bpf_attach.main()
"""


def test_tcx_on_a_kernel_that_has_none(node: Sandbox) -> None:
    before = node.state()
    for check in (True, False):
        given = arguments_of(check, {"attachments": [at("eth0", "one")], "mechanism": "tcx"})
        error = parts(result(*node.job(NO_TCX, stdin=given)))
        assert error["errno"] in ("ENOTSUP", "EOPNOTSUPP")  # one number, two names
        assert "kernel 6.6" in error["advice"]
    assert node.state() == before
    automatic = result(*node.job(NO_TCX, stdin=arguments_of(False, {"attachments": [at("eth0", "one")]})))
    assert automatic["attachments"][0]["mechanism_reason"] == "this kernel has no TCX"


@pytest.mark.parametrize("mechanism", ["clsact", "tcx"])
def test_a_bpffs_mounted_a_second_time_is_noticed_before_anything_is_attached_cilium_47847(
    node: Sandbox, mechanism: str
) -> None:
    node.attach(at("eth0", "one"), mechanism=mechanism)
    wanted = at("eth0", "one"), at("cali1", "one")
    node.sh("mount -t bpf bpf /sys/fs/bpf")
    try:
        error = refused(node, *wanted, mechanism=mechanism)
    finally:
        node.sh("umount /sys/fs/bpf")
    assert "more than once" in error["reason"]
    assert "findmnt" in error["advice"]
    assert len(node.attach(*wanted, mechanism=mechanism)["attachments"]) == 2


def test_names_at_the_limit_of_their_length(node: Sandbox) -> None:
    """Interfaces of 15 bytes, dots among them; a program's name that no pin of a link could hold."""
    names = ("abcdefghijklmno", "abcdefghijklmn.", "abcdefghijkl.no")
    for number, name in enumerate(names):
        node.sh(f"ip link add {name} type veth peer name l{number}")
    try:
        for mechanism in ("tcx", "clsact"):
            node.both(*[at(name, "one") for name in names], mechanism=mechanism)
            assert not node.attach(*[at(name, "one") for name in names], mechanism=mechanism)["changed"]
        node.both(purge=True)
        node.load("a_" * 64)
        error = refused(node, at(names[0], "a_" * 64), mechanism="tcx")
        assert "255" in error["reason"]
        node.both(at(names[0], "a_" * 64), mechanism="clsact")
        node.both(purge=True)
    finally:
        node.sh("".join(f"ip link del {name};" for name in names))
    assert "/run/ebpf-overlay" not in node.state()


def test_two_runs_that_want_different_things_at_once_end_as_one_of_them(node: Sandbox) -> None:
    """The later one waits for the earlier one; never is it a mixture of both."""
    for __ in range(3):
        began = [
            subprocess.Popen(
                node.command(PYTHON, "-m", "ansible_collections.ebpf.overlay.plugins.modules.tc_bpf_attach"),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env=environment(), cwd="/",
            )
            for _name in ("one", "two")
        ]  # fmt: skip
        for process, name in zip(began, ("one", "two")):
            assert process.stdin
            wanted = {"attachments": [at("*", name)], "purge": True, "mechanism": "clsact"}
            process.stdin.write(arguments_of(False, wanted))
            process.stdin.close()
        for process in began:
            assert process.stdout
            ended = result(process.wait(), process.stdout.read())
            assert (ended["rc"], ended.get("changed")) in {(0, True), (0, False)}, ended
        found = [
            line.split("ebpf.overlay:")[1].split()[0]
            for interface in ("eth0", "eth1.1", "eth11", "cali1", "cali2", "lo")
            for line in node.filters(interface)
        ]
        assert found in (["one"] * 6, ["two"] * 6)
