# SPDX-License-Identifier: GPL-3.0-or-later
"""``tc_bpf_attach`` on real hooks: namespaces of its own, veths, tiny programs. Needs root."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from integration.tc_sandbox import PINS, PYTHON, Sandbox, arguments_of, at, environment, result, returns

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    box = Sandbox(f"ovl-xtc-{os.getpid()}", ("eth0", "eth1.1", "eth11", "cali1", "cali2"))
    yield box
    box.close()


@pytest.fixture
def node(shared: Sandbox) -> Sandbox:
    """The sandbox as it was at first, with programs ``one`` and ``two`` pinned."""
    shared.sh(
        "for d in $(ls /sys/class/net); do for q in clsact ingress; do tc qdisc del dev $d $q 2>/dev/null; done; done; "
        "rm -rf /sys/fs/bpf/ebpf-overlay /sys/fs/bpf/test /sys/fs/bpf/foreign /run/*; true"
    )
    shared.load("one", returns(-1))
    shared.load("two", returns(-1, padding=1))
    return shared


def parts(result: dict[str, Any]) -> dict[str, Any]:
    """The four parts of an error, each of which must be there, in the data and in the message."""
    assert result["rc"] != 0, result
    assert result.get("failed"), result
    for key in ("doing", "target", "reason", "advice"):
        assert result["error"][key], result
        assert str(result["error"][key]) in result["msg"]
    return result["error"]


def refused(node: Sandbox, *attachments: dict[str, Any], **params: Any) -> dict[str, Any]:
    """The error of a run that must change nothing; a dry run must fail in the same way."""
    before = node.state()
    error = parts(node.attach(*attachments, **params))
    assert node.state() == before
    assert parts(node.attach(*attachments, check=True, **params)) == error
    return error


# -- clsact -----------------------------------------------------------------------------------------------------------


def test_attach_is_idempotent_and_visible_in_tc(node: Sandbox) -> None:
    wanted = [at("eth0", "one"), at("cali*", "two", direction="egress", priority=9, handle=3)]
    result = node.both(*wanted, mechanism="clsact")
    assert result["changed"]
    assert [
        (entry["interface"], entry["direction"], entry["priority"], entry["handle"]) for entry in result["attachments"]
    ] == [
        ("eth0", "ingress", 1, 1),
        ("cali1", "egress", 9, 3),
        ("cali2", "egress", 9, 3),
    ]
    (line,) = node.filters("eth0")
    assert "protocol all pref 1" in line
    assert "handle 0x1 ebpf.overlay:one direct-action" in line
    assert f"id {result['attachments'][0]['program_id']} " in line
    assert f"tag {result['attachments'][0]['tag']} " in line
    assert len(node.filters("cali2", "egress")) == 1

    before = node.state()
    again = node.both(*wanted, mechanism="clsact")
    assert not again["changed"]
    assert again["diff"]["before"] == again["diff"]["after"] == result["diff"]["after"]
    assert not any(entry["qdisc_created"] for entry in again["attachments"])
    assert node.state() == before


def test_a_new_program_replaces_the_old_one_in_its_slot(node: Sandbox) -> None:
    node.attach(at("eth0", "one"))
    new = node.load("one", returns(-1, padding=3))
    result = node.both(at("eth0", "one"))
    assert result["changed"]
    assert result["attachments"][0]["program_id"] == new
    (line,) = node.filters("eth0")
    assert f"id {new} " in line
    assert not node.attach(at("eth0", "one"))["changed"]


def test_the_same_code_loaded_again_is_another_program(node: Sandbox) -> None:
    """Same tag, other id: its maps would be others too."""
    node.attach(at("eth0", "one"))
    new = node.load("one", returns(-1))
    assert node.both(at("eth0", "one"))["changed"]
    assert f"id {new} " in node.filters("eth0")[0]


def test_a_changed_priority_leaves_no_old_filter_running_cilium_36172(node: Sandbox) -> None:
    node.attach(at("eth0", "one", priority=5))
    result = node.both(at("eth0", "one", priority=7, handle=2))
    assert [(entry["priority"], entry["handle"]) for entry in result["removed"]] == [(5, 1)]
    (line,) = node.filters("eth0")
    assert "pref 7" in line
    assert "handle 0x2" in line


def test_runs_do_not_stack_filters_calico_8897(node: Sandbox) -> None:
    for number in range(3):
        node.load("one", returns(-1, padding=number + 2))
        node.attach(at("eth0", "one"))
    assert len(node.filters("eth0")) == 1


def foreign_state(node: Sandbox) -> None:
    """Filters of somebody else at usual and unusual priorities, before anything of ours is there."""
    node.load("theirs", returns(-1, padding=7))
    node.sh(
        "tc qdisc add dev eth0 clsact; "
        "for p in 1 10 50 49152; do "
        f"tc filter add dev eth0 ingress prio $p handle 0x77 protocol all bpf da pinned {PINS}/theirs; "
        "done; tc filter add dev eth0 ingress prio 20 protocol ip u32 match ip dst 192.0.2.1 classid 1:1; "
        "tc filter add dev eth0 egress prio 5 protocol all u32 match u32 0 0 classid 1:1"
    )


def test_neighbours_stay_untouched_tracee_1828(node: Sandbox) -> None:
    foreign_state(node)
    node.sh("tc qdisc add dev cali1 clsact")
    before = node.state()
    node.both(
        at("eth0", "one"), at("eth0", "two", priority=10), at("eth0", "two", direction="egress"), at("cali*", "one")
    )
    node.load("one", returns(-1, padding=4))
    node.both(at("eth0", "one", priority=50), at("eth0", "two", priority=3), at("cali*", "one"))
    result = node.both(purge=True)
    assert len(result["removed"]) == 5
    after = node.state()
    assert after.replace(after[after.index("/run") :], "") == before.replace(before[before.index("/run") :], "")
    assert "qdisc clsact ffff: dev cali1" in after, "foreign, though empty"
    assert "dev cali2" not in after


@pytest.mark.parametrize("taken", [{"handle": 0x77}, {"priority": 20}], ids=["handle", "kind"])
def test_a_place_taken_by_somebody_else_is_refused_cilium_28433(node: Sandbox, taken: dict[str, Any]) -> None:
    foreign_state(node)
    error = refused(node, at("cali1", "one"), at("eth0", "one", **taken))
    assert "eth0" in error["target"]
    assert "somebody else" in error["reason"]


def test_owners_keep_out_of_each_others_way(node: Sandbox) -> None:
    node.attach(at("eth0", "one"), owner="acme")
    node.attach(at("eth0", "one", handle=2), at("cali1", "two"))
    mine = node.filters("eth0")
    assert len(mine) == 2
    result = node.both(purge=True, owner="acme")
    assert [entry["interface"] for entry in result["removed"]] == ["eth0"]
    assert [line for line in mine if "acme" not in line] == node.filters("eth0")
    assert "qdisc clsact" in node.sh("tc qdisc show dev eth0"), "still in use"
    node.both(purge=True)
    assert "clsact" not in node.sh("tc qdisc show")
    assert "/run/ebpf-overlay" not in node.state()


def test_purge_removes_what_the_list_does_not_name(node: Sandbox) -> None:
    node.attach(at("eth0", "one"), at("eth0", "two", direction="egress"), at("cali*", "one"))
    result = node.both(at("cali1", "one"), purge=True)
    assert [(entry["interface"], entry["direction"]) for entry in result["removed"]] == [
        ("cali2", "ingress"),
        ("eth0", "egress"),
        ("eth0", "ingress"),
    ]
    assert node.sh("tc qdisc show").count("clsact") == 1


def test_absent_removes_wherever_it_runs_and_needs_no_pin(node: Sandbox) -> None:
    node.attach(at("eth0", "one", priority=30), at("eth0", "two"))
    node.sh(f"rm {PINS}/one")
    result = node.both(at("eth0", "one"), at("cali*", "one"), at("eth9", "one"), state="absent")
    assert [entry["program"] for entry in result["removed"]] == ["one"]
    (line,) = node.filters("eth0")
    assert "two" in line
    assert not node.both(at("eth0", "one"), state="absent")["changed"]
    node.both(at("eth0", "two"), state="absent")
    assert "clsact" not in node.sh("tc qdisc show")


def test_a_first_dry_run_predicts_the_interfaces_before_the_program_exists(node: Sandbox) -> None:
    node.sh(f"rm {PINS}/one")
    dry = node.attach(at("eth0", "one"), at("cali*", "one"), check=True)
    assert dry["changed"]
    assert any("No program is pinned" in warning for warning in dry["warnings"])
    real = node.attach(at("eth0", "one"), at("cali*", "one"))
    assert "No program is pinned" in parts(real)["reason"]
    assert "clsact" not in node.sh("tc qdisc show")
    node.load("one")
    real = node.attach(at("eth0", "one"), at("cali*", "one"))
    assert [entry["interface"] for entry in real["attachments"]] == [entry["interface"] for entry in dry["attachments"]]


def test_a_foreign_ingress_qdisc_serves_ingress_and_rules_out_egress(node: Sandbox) -> None:
    node.sh(
        "tc qdisc add dev eth0 handle ffff: ingress; "
        "tc filter add dev eth0 ingress prio 8 protocol all u32 match u32 0 0 classid 1:1"
    )
    node.both(at("eth0", "one"), mechanism="clsact")
    assert len(node.filters("eth0")) == 2
    error = refused(node, at("eth0", "one", direction="egress"), mechanism="clsact")
    assert "ingress qdisc" in error["reason"]
    node.both(purge=True)
    assert "qdisc ingress" in node.sh("tc qdisc show dev eth0")
    assert len(node.filters("eth0")) == 1


def test_a_qdisc_that_somebody_deleted_comes_back_and_is_told(node: Sandbox) -> None:
    node.attach(at("eth0", "one"))
    node.sh("tc qdisc del dev eth0 clsact")
    result = node.both(at("eth0", "one"))
    assert result["attachments"][0]["qdisc_created"]
    assert any("eth0" in warning and "somebody removed it" in warning for warning in result["warnings"])
    node.both(purge=True)
    assert "clsact" not in node.sh("tc qdisc show")


def test_an_interface_that_comes_back_is_not_taken_for_the_old_one(node: Sandbox) -> None:
    """veth churn, calico #11012: a record of a qdisc does not outlive its interface."""
    node.sh("ip link add cali9 type veth peer name q9")
    node.attach(at("cali9", "one"))
    node.sh("ip link del cali9; ip link add cali9 type veth peer name q9; tc qdisc add dev cali9 clsact")
    node.both(at("cali9", "one"))
    node.both(purge=True)
    assert "dev cali9" in node.sh("tc qdisc show"), "this one is somebody else's"
    assert "/run/ebpf-overlay" not in node.state()
    node.sh("ip link del cali9")


# -- TCX --------------------------------------------------------------------------------------------------------------

TCX_ATTACH = """
import os, sys, socket
from ansible_collections.ebpf.overlay.plugins.module_utils import _bpf_syscall as bpf
pin, interface, way, program = sys.argv[1:5]
os.makedirs(os.path.dirname(pin), exist_ok=True)
link = bpf.link_create_tcx(bpf.obj_get(program), socket.if_nametoindex(interface), int(way))
bpf.obj_pin(link, pin)
"""


def tcx_of(node: Sandbox, interface: str) -> str:
    return "".join(line for line in node.state().splitlines() if line.startswith(f"{interface} 4"))


def test_tcx_attach_update_and_remove(node: Sandbox) -> None:
    wanted = [at("eth0", "one"), at("eth1.1", "one"), at("eth11", "one"), at("eth0", "two", direction="egress")]
    result = node.both(*wanted, mechanism="tcx")
    assert {entry["mechanism"] for entry in result["attachments"]} == {"tcx"}
    assert "clsact" not in node.sh("tc qdisc show")
    pins = node.sh("find /sys/fs/bpf/ebpf-overlay -type f").split()
    assert len(pins) == len(set(pins)) == 4
    assert not any("." in pin[len("/sys/fs/bpf") :] for pin in pins)
    assert not node.both(*wanted, mechanism="tcx")["changed"]
    assert not node.both(*wanted)["changed"], "auto keeps what runs through TCX"

    link = tcx_of(node, "eth0")
    new = node.load("one", returns(-1, padding=5))
    node.both(*wanted, mechanism="tcx")
    assert f"({new}, " in tcx_of(node, "eth0")
    assert tcx_of(node, "eth0").split(", ")[1:] == link.split(", ")[1:], "the same link"

    node.both(at("eth0", "one"), state="absent")
    assert len(node.sh("find /sys/fs/bpf/ebpf-overlay -type f").split()) == 3
    node.both(purge=True)
    assert "ebpf-overlay" not in node.state()


def test_tcx_links_of_others_stay_and_make_auto_choose_tcx(node: Sandbox) -> None:
    node.load("theirs", returns(0, padding=7))
    node.python(TCX_ATTACH, "/sys/fs/bpf/foreign/link", "eth0", "46", f"{PINS}/theirs")
    before = tcx_of(node, "eth0")
    result = node.both(at("eth0", "one"), at("cali1", "one"))
    assert [entry["mechanism"] for entry in result["attachments"]] == ["tcx", "clsact"]
    assert "somebody else" in result["attachments"][0]["mechanism_reason"]
    programs = tcx_of(node, "eth0")
    assert programs.index(f"({result['attachments'][0]['program_id']}, ") < programs.index(
        before[before.index("(") : -1]
    )
    error = refused(node, at("eth0", "theirs"), mechanism="tcx")
    assert "somebody else" in error["reason"]
    node.both(purge=True)
    assert tcx_of(node, "eth0") == before


@pytest.mark.parametrize(("old", "new"), [("clsact", "tcx"), ("tcx", "clsact")])
def test_migration_leaves_nothing_behind(node: Sandbox, old: str, new: str) -> None:
    node.attach(at("eth0", "one"), at("cali*", "one"), mechanism=old)
    result = node.both(at("eth0", "one"), at("cali*", "one"), mechanism=new)
    assert {entry["mechanism"] for entry in result["removed"]} == {old}
    assert ("clsact" in node.sh("tc qdisc show")) == (new == "clsact")
    assert ("ebpf-overlay/links" in node.state()) == (new == "tcx")
    assert not node.both(at("eth0", "one"), at("cali*", "one"), mechanism=new)["changed"]


def test_a_link_that_lost_its_interface_leaves_no_pin(node: Sandbox) -> None:
    node.sh("ip link add cali8 type veth peer name q8")
    node.attach(at("cali*", "one"), mechanism="tcx")
    node.sh("ip link del cali8")
    assert node.both(at("cali*", "one"), mechanism="tcx")["changed"]
    assert len(node.sh("find /sys/fs/bpf/ebpf-overlay -type f").split()) == 2
    assert not node.both(at("cali*", "one"), mechanism="tcx")["changed"]


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
        "from ansible_collections.ebpf.overlay.plugins.module_utils import _bpf_syscall as bpf\n"
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
    error = parts(node.separately("tc_bpf_attach", *drop, attachments=[at("eth0", "one")]))
    assert "CAP_NET_ADMIN" in error["advice"]
    assert error["errno"] == "EPERM"
    assert node.state() == before


def test_values_out_of_range(node: Sandbox) -> None:
    assert "65536" in refused(node, at("eth0", "one", priority=65536))["target"]
    assert "owner" in refused(node, at("eth0", "one"), owner="a:b")["doing"]


# No library here, and no other interpreter that has it.
BARE = """
import importlib.util
from ansible_collections.ebpf.overlay.plugins.module_utils import _module
from ansible_collections.ebpf.overlay.plugins.modules import tc_bpf_attach
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "pyroute2" else found(name, *more)
_module.INTERPRETERS.clear()
tc_bpf_attach.main()
"""


def test_missing_pyroute2_is_named_by_its_package(node: Sandbox) -> None:
    """A dry run needs no library and tells the same changes; so does a run that changes nothing."""

    def bare(check: bool) -> dict[str, Any]:
        return result(*node.job(BARE, stdin=arguments_of(check, {"attachments": [at("eth0", "one")]})))

    dry = bare(True)
    assert dry["changed"]
    assert any("python3-pyroute2" in warning for warning in dry["warnings"])
    before = node.state()
    assert "python3-pyroute2" in parts(bare(False))["reason"]
    assert node.state() == before
    real = node.attach(at("eth0", "one"))
    assert (real["attachments"], real["diff"]) == (dry["attachments"], dry["diff"])
    again = bare(False)
    assert not again["changed"]
    assert again["rc"] == 0


def test_two_runs_at_once_do_not_mix(node: Sandbox) -> None:
    hold = (
        "import sys, time\n"
        "from ansible_collections.ebpf.overlay.plugins.module_utils._lock import one_run\n"
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


# Runs the module, and before its Nth operation does what it is told.
DISTURBED = """
import os, signal, subprocess, sys
from ansible_collections.ebpf.overlay.plugins.module_utils import _hooks
from ansible_collections.ebpf.overlay.plugins.modules import tc_bpf_attach
number, action = int(sys.argv.pop(1)), sys.argv.pop(1)
done, perform = [], _hooks._perform
def perform_or_not(operation, control):
    if len(done) == number:
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        subprocess.run(action, shell=True, check=True)
    done.append(operation)
    perform(operation, control)
_hooks._perform = perform_or_not
tc_bpf_attach.main()
"""


def disturbed(node: Sandbox, number: int, action: str, *attachments: dict[str, Any], **params: Any) -> dict[str, Any]:
    given = arguments_of(False, {**params, "attachments": list(attachments)})
    return result(*node.job(DISTURBED, str(number), action, stdin=given))


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
    assert not node.attach(at("cali*", "one"))["changed"], "the others were taken care of"
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
    theirs = f"tc filter add dev eth0 ingress prio 1 handle 1 protocol all bpf da pinned {PINS}/theirs"
    if mechanism == "tcx":
        theirs = f"{PYTHON} -c '{TCX_ATTACH}' /sys/fs/bpf/foreign/link eth0 46 {PINS}/theirs"
    error = parts(disturbed(node, 0, theirs, at("eth0", "one"), mechanism=mechanism))
    assert error["errno"] == ("EEXIST" if mechanism == "clsact" else "ESTALE")
    assert "ebpf.overlay:one" not in str(node.filters("eth0"))


@pytest.mark.parametrize("final", ["present", "moved", "absent"])
@pytest.mark.parametrize("mechanism", ["clsact", "tcx"])
def test_a_run_killed_anywhere_is_finished_by_the_next_one(node: Sandbox, mechanism: str, final: str) -> None:
    """retina #537: killed before each of its changes in turn, then one more run; nothing may be left over."""
    clean = node.state()
    runs: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        "present": ([at("eth0", "one")], {"mechanism": mechanism}),
        "moved": ([at("eth0", "one", priority=8)], {"mechanism": "tcx" if mechanism == "clsact" else "clsact"}),
        "absent": ([], {"purge": True}),
    }
    wanted, params = runs[final]
    goal = None
    for number in range(10):
        if final != "present":
            node.attach(*runs["present"][0], **runs["present"][1])
        killed = disturbed(node, number, "kill", *wanted, **params)
        finished = node.attach(*wanted, **params)
        assert finished["rc"] == 0, finished
        assert not node.attach(*wanted, **params)["changed"]
        held = [line for line in node.state().splitlines() if line.startswith(("qdisc", "filter", "/run", "/sys"))]
        goal = goal or held
        assert held == goal
        node.attach(purge=True)
        assert node.state() == clean
        if killed["rc"] == 0:
            assert number
            return
    raise AssertionError("never ran to its end")


# -- tc_bpf_info ------------------------------------------------------------------------------------------------------


def test_info_flags_what_never_runs_aws_network_policy_agent_480(node: Sandbox) -> None:
    foreign_state(node)
    node.load("ends", returns(0, padding=8))
    node.python(TCX_ATTACH, "/sys/fs/bpf/foreign/link", "eth0", "46", f"{PINS}/theirs")
    node.sh(f"tc filter add dev eth0 ingress prio 30 handle 1 protocol all bpf da pinned {PINS}/ends")
    node.attach(at("eth0", "one"), mechanism="tcx")
    (expected,) = node.attach(at("eth0", "two", priority=40), mechanism="clsact")["attachments"]
    before = node.state()
    found = node.module("tc_bpf_info", interface=["eth0", "cali*"])
    assert not found["changed"]
    assert node.state() == before
    assert [entry["name"] for entry in found["interfaces"]] == ["cali1", "cali2", "eth0"]
    eth0 = found["interfaces"][2]
    assert [(qdisc["kind"], qdisc["ours"]) for qdisc in eth0["qdiscs"]][-1] == ("clsact", False)
    hook = eth0["ingress"]
    assert [(entry["mechanism"], entry["priority"], entry["kind"]) for entry in hook if entry["kind"] == "bpf"] == [
        ("tcx", None, "bpf"),
        ("tcx", None, "bpf"),
        *[("clsact", priority, "bpf") for priority in (1, 10, 30, 40, 50, 49152)],
    ]
    assert [entry["name"] for entry in hook[:2]] == ["ebpf.overlay:one", "theirs"]
    assert [entry["owner"] for entry in hook if entry["owner"]] == ["ebpf.overlay"] * 2
    ours = next(entry for entry in hook if entry["name"] == "ebpf.overlay:two")
    assert (ours["program_id"], ours["tag"], ours["handle"]) == (expected["program_id"], expected["tag"], 1)
    assert ours["hidden_by"].startswith("bpf filter priority 30 handle 0x1 ends")
    assert all(bool(entry["hidden_by"]) == ((entry["priority"] or 0) > 30) for entry in hook)
    u32 = next(entry for entry in hook if entry["kind"] == "u32")
    assert (u32["priority"], u32["protocol"], u32["program_id"]) == (20, "ip", None)
    assert eth0["egress"][-1]["kind"] == "u32"


def test_info_agrees_with_traffic(node: Sandbox) -> None:
    """What is called hidden counts no packet, what runs before it counts all."""
    node.load("ends", returns(0, padding=8))
    node.attach(at("eth0", "one"), at("eth0", "ends", priority=2), at("eth0", "two", priority=3), mechanism="clsact")
    node.sh("ip link set eth0 up; ip link set p0 up")
    runs = json.loads(node.python(SEND_AND_COUNT, *[f"{PINS}/{name}" for name in ("one", "ends", "two")]))
    hook = node.module("tc_bpf_info", interface=["eth0"])["interfaces"][0]["ingress"]
    assert [bool(entry["hidden_by"]) for entry in hook] == [False, False, True]
    assert runs[0] >= 10
    assert runs[1] >= 10
    assert runs[2] == 0


# BPF_ENABLE_STATS (32) lasts as long as its descriptor, and is nobody else's business.
SEND_AND_COUNT = """
import json, socket, sys
from ansible_collections.ebpf.overlay.plugins.module_utils import _bpf_syscall as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._bpf_call import attribute, bpf as call
stats = call(32, attribute("I", 0))
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind(("p0", 0))
for _ in range(10):
    sock.send(b"\\xff" * 6 + b"\\x02" * 6 + b"\\x88\\xb5" + bytes(46))
print(json.dumps([bpf.prog_info(bpf.obj_get(pin)).run_cnt for pin in sys.argv[1:]]))
"""


def test_info_of_an_interface_that_does_not_exist(node: Sandbox) -> None:
    assert parts(node.module("tc_bpf_info", interface=["eth9"]))["errno"] == "ENODEV"
    assert node.module("tc_bpf_info", interface=["tap*"])["interfaces"] == []
