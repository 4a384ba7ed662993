# SPDX-License-Identifier: GPL-3.0-or-later
"""``bpf_object`` and ``bpffs`` on a real kernel and with the real compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from integration.bpf_object_node import ROOT, Node, Outcome, node
from integration.object_source import (
    BUILD,
    MAIN,
    PIN_DIR,
    PREFIX,
    SIZES,
    TABLES,
    build,
    entries,
    expected,
    fill,
    remove,
)

pytest_plugins = ["integration.object_fixtures"]


def assert_refused(outcome: Outcome, doing: str, *words: str, errno: str | None = None) -> None:
    """A failure with its four parts, and nothing changed."""
    assert outcome.result.get("failed"), outcome
    error = outcome.result["error"]
    assert error["doing"] == doing, outcome.result["msg"]
    assert error["target"]
    assert error["reason"]
    assert error["advice"].endswith("."), error
    assert error["errno"] == errno
    for word in words:
        assert word in outcome.result["msg"]
    assert outcome.changes == 0


# --- the ordinary life of a build -------------------------------------------------------------------------------------


def test_check_real_check_real_then_absent(target: Node, source: Path) -> None:
    before = target.state(PREFIX)
    dry = build(target, source, dry=True)
    assert dry.result["changed"]
    assert dry.result["compiled"]
    assert set(dry.ids.values()) == {None}
    assert target.settled_state(PREFIX) == before

    real = build(target, source)
    assert real.result["diff"] == dry.result["diff"]
    assert real.result["digest"] == dry.result["digest"]
    assert [item["tag"] for item in real.result["programs"]] == [item["tag"] for item in dry.result["programs"]]
    assert real.bcc
    state = target.settled_state(PREFIX)
    assert sorted(state["programs"]) == sorted(real.ids[name] for name in (f"{PREFIX}first", f"{PREFIX}second"))
    assert sorted(state["maps"]) == sorted(real.ids[name] for name in (f"{PREFIX}flows", f"{PREFIX}stats"))
    assert set(state["pins"]) == {PIN_DIR, BUILD, *(f"{PIN_DIR}/{name}" for name in real.ids)}
    assert real.result["maps"][0] == {
        "name": f"{PREFIX}flows", "id": real.ids[f"{PREFIX}flows"], "type": "hash", "key_size": 4, "value_size": 8,
        "max_entries": 64, "flags": 0, "fresh": True, "pin": f"{PIN_DIR}/{PREFIX}flows",
    }  # fmt: skip

    for again in (build(target, source, dry=True), build(target, source)):
        assert not again.result["changed"]
        assert not again.result["compiled"]
        assert again.ids == real.ids
        assert not again.bcc, "a second run must not load the compiler (its memory: bcc #1181)"
        assert again.changes == 0
    assert target.settled_state(PREFIX) == state

    assert remove(target, dry=True).result["changed"]
    assert target.settled_state(PREFIX) == state
    assert remove(target).result["changed"]
    assert target.settled_state(PREFIX) == before
    assert not remove(target).result["changed"]


def test_it_needs_no_kernel_headers_bcc_3819(target: Node, source: Path) -> None:
    release = os.uname().release
    assert not any(target.command("ls", f"/lib/modules/{release}/{name}", check=False).stdout for name in ("build", ""))
    assert build(target, source).result["compiled"]


def test_a_changed_header_makes_new_programs_and_maps_keep_their_entries(target: Node, source: Path) -> None:
    first = build(target, source)
    fill(target, 10)
    (source.parent / "sizes.h").write_text(SIZES.replace("SECOND 1", "SECOND 2"))
    dry = build(target, source, dry=True)
    second = build(target, source)
    assert second.result["changed"]
    assert second.result["diff"] == dry.result["diff"]
    assert second.result["digest"] != first.result["digest"]
    for name in (f"{PREFIX}first", f"{PREFIX}second"):
        assert second.ids[name] != first.ids[name]
    for name in (f"{PREFIX}flows", f"{PREFIX}stats"):
        assert second.ids[name] == first.ids[name] == dry.ids[name]
    assert entries(target) == expected(10)
    state = target.settled_state(PREFIX)
    assert len(state["programs"]) == 2
    assert len(state["maps"]) == 2


def test_a_program_and_a_map_that_are_no_longer_wanted_go(target: Node, source: Path) -> None:
    build(target, source)
    (source.parent / "tables.h").write_text(TABLES.replace(f"{PREFIX}stats", f"{PREFIX}counts"))
    source.write_text(MAIN.replace(f"{PREFIX}stats", f"{PREFIX}counts"))
    build(target, source, programs=[f"{PREFIX}second"])
    pins = target.settled_state(PREFIX)["pins"]
    assert set(pins) == {PIN_DIR, BUILD, *(f"{PIN_DIR}/{PREFIX}{name}" for name in ("second", "flows", "counts"))}


@pytest.mark.parametrize("lost", [f"{PREFIX}first", f"{PREFIX}stats", "build"])
def test_a_lost_pin_is_noticed_and_made_again(target: Node, source: Path, lost: str) -> None:
    build(target, source)
    target.command("rm", f"{PIN_DIR}/{lost}")
    if lost == "build":
        # Without the record nothing shows that the pins are ours, and what is somebody else's is not touched.
        assert_refused(build(target, source), "pin", "already pinned")
        return
    assert build(target, source).result["changed"]
    assert not build(target, source).result["changed"]


def test_defines_are_part_of_the_identity(target: Node, source: Path) -> None:
    first = build(target, source, defines={"SECOND": 1})
    assert not build(target, source, defines={"SECOND": True}).result["changed"]
    second = build(target, source, defines={"SECOND": 7})
    assert second.result["digest"] != first.result["digest"]


# --- maps that change (calico #12876, cilium #28742) ------------------------------------------------------------------


def test_map_with_a_new_layout_is_refused_before_anything_changes_calico_12876(target: Node, source: Path) -> None:
    build(target, source)
    fill(target, 3)
    state = target.settled_state(PREFIX)
    for dry in (True, False):
        outcome = build(target, source, dry=dry, defines={"CAPACITY": 128})
        assert_refused(outcome, "carry a map over", f"{PREFIX}flows", "capacity 64", "capacity 128", "on_map_change")
    assert target.settled_state(PREFIX) == state
    assert entries(target) == expected(3)


def test_capacity_is_migrated_with_all_entries_cilium_28742(target: Node, source: Path) -> None:
    first = build(target, source)
    fill(target, 60)
    grown = build(target, source, defines={"CAPACITY": 100}, on_map_change="migrate")
    assert grown.ids[f"{PREFIX}flows"] != first.ids[f"{PREFIX}flows"]
    assert grown.ids[f"{PREFIX}stats"] == first.ids[f"{PREFIX}stats"]
    assert entries(target) == expected(60)
    state = target.settled_state(PREFIX)
    assert len(state["maps"]) == 2

    for dry in (True, False):
        outcome = build(target, source, dry=dry, defines={"CAPACITY": 59}, on_map_change="migrate")
        assert_refused(outcome, "migrate a map", "59", errno="E2BIG")
    assert target.settled_state(PREFIX) == state
    build(target, source, defines={"CAPACITY": 60}, on_map_change="migrate")
    assert entries(target) == expected(60)


@pytest.mark.parametrize(("policy", "added"), [("migrate", 40), ("replace", 100)])
def test_the_dry_run_of_an_upgrade_knows_what_the_maps_will_be(
    target: Node, source: Path, policy: str, added: int
) -> None:
    """More entries than the pinned map has room for, or a map that will begin empty."""

    def sync(dry: bool, maps: list[Any]) -> dict[str, Any]:
        listed = [{"key": number, "value": number + 1} for number in range(100)]
        pin = f"{PIN_DIR}/{PREFIX}flows"
        return target.run("bpf_map_sync", dry=dry, map=pin, maps=maps, key="u32", value="u64", entries=listed).result

    build(target, source)
    fill(target, 60)
    state = target.settled_state(PREFIX)
    upgrade: dict[str, Any] = {"defines": {"CAPACITY": 128}, "on_map_change": policy}
    foretold = build(target, source, dry=True, **upgrade).result["maps"]
    assert [item["fresh"] for item in foretold] == [policy == "replace", False]
    assert "room for 64" in sync(True, [])["msg"], "what is pinned now has no room"
    dry = sync(True, foretold)
    assert target.settled_state(PREFIX) == state
    done = build(target, source, **upgrade).result["maps"]
    assert [item["fresh"] for item in done] == [item["fresh"] for item in foretold]
    real = sync(False, done)
    for key in ("changed", "added", "changed_entries", "removed", "size", "diff"):
        assert dry[key] == real[key], key
    assert (real["added"], real["size"]) == (added, 100)


def test_another_value_size_is_replaced_only_on_request(target: Node, source: Path) -> None:
    build(target, source)
    fill(target, 3)
    (source.parent / "tables.h").write_text(TABLES.replace('"hash", u32, u64', '"hash", u32, u32').replace("u64 *found", "u32 *found"))  # fmt: skip # noqa: E501
    assert_refused(build(target, source, on_map_change="migrate"), "migrate a map", "value 8", "value 4")
    assert build(target, source, on_map_change="replace").result["maps"][0]["value_size"] == 4
    assert entries(target) == "[]"


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dry", [True, False])
def test_source_that_does_not_compile(target: Node, source: Path, dry: bool) -> None:
    (source.parent / "tables.h").write_text(TABLES.replace("return found", "return fuond"))
    # The line number is the header's own, although the compiler sees one text.
    assert_refused(build(target, source, dry=dry), "compile", "tables.h:10:", "undeclared identifier 'fuond'")
    source.write_text(MAIN.replace("count(", "not_declared("))
    assert_refused(build(target, source, dry=dry), "compile", "not_declared")


@pytest.mark.parametrize("dry", [True, False])
def test_program_that_the_verifier_refuses(target: Node, source: Path, dry: bool) -> None:
    before = target.settled_state(PREFIX)
    source.write_text(MAIN.replace("if (total)", "if (total && *(u8 *)(long)skb->data)"))
    outcome = build(target, source, dry=dry)
    assert_refused(outcome, "load a program", f"{PREFIX}second", "invalid access to packet", errno="EACCES")
    assert target.settled_state(PREFIX) == before


def test_other_bad_input(target: Node, source: Path, tmp_path: Path) -> None:
    before = target.settled_state(PREFIX)
    outcome = build(target, source, programs=[f"{PREFIX}thrid"])
    assert_refused(outcome, "find a program", f"{PREFIX}thrid", f"{PREFIX}first, {PREFIX}second")
    assert_refused(build(target, tmp_path / "gone.c"), "read the source", "gone.c", errno="ENOENT")
    assert_refused(build(target, Path("overlay.c")), "read the source", "controller has no such file")
    assert_refused(build(target, source, defines={"NO-NAME": 1}), "define a macro", "NO-NAME")
    assert_refused(build(target, source, pin_dir="/sys/fs/bpf/a.b"), "use the folder for pins", "dots")
    assert_refused(build(target, source, pin_dir="/sys/fs/bpf"), "use the folder for pins", "bpffs itself")
    assert_refused(build(target, source, pin_dir="/tmp/elsewhere"), "start", "not below a bpffs")
    source.write_text(MAIN + 'BPF_TABLE_PINNED("hash", u32, u32, pinned, 1, "/sys/fs/bpf/pinned");\n')
    assert_refused(build(target, source, dry=True), "compile", "BPF_TABLE_PINNED")
    assert target.settled_state(PREFIX) == before


def test_missing_capability(target: Node, source: Path) -> None:
    without = ("setpriv", "--bounding-set=-sys_admin,-bpf", "--inh-caps=-sys_admin,-bpf")
    outcome = build(target, source, wrapper=without)
    assert_refused(outcome, "create the maps", "CAP_BPF", "CAP_NET_ADMIN", errno="EPERM")


def test_kernel_that_is_too_old(target: Node, source: Path) -> None:
    outcome = build(target, source, patch={"module_utils._objects.compiler.kernel_release": "5.4.0-42-generic"})
    assert_refused(outcome, "load programs", "5.4.0-42-generic", "5.10")


def test_node_without_the_compiler(target: Node, source: Path) -> None:
    bare = {"module_utils._objects.compiler.compiler_version": None, "module_utils._objects.resource.importable": False}
    dry = build(target, source, dry=True, patch=bare)
    assert dry.result["changed"]
    assert dry.result["compiled"]
    assert dry.result["digest"] is None
    assert any("python3-bpfcc" in str(warning) for warning in dry.result["warnings"])
    assert_refused(build(target, source, patch=bare), "start", "python3-bpfcc", "python3-bcc", "something else")


def test_somebody_elses_pins_are_not_touched(target: Node, source: Path) -> None:
    build(target, source, pin_dir="/sys/fs/bpf/other")
    target.command("mkdir", PIN_DIR)
    target.command("mv", f"/sys/fs/bpf/other/{PREFIX}flows", f"{PIN_DIR}/{PREFIX}flows")
    before = target.settled_state(PREFIX)
    assert_refused(build(target, source), "pin", f"{PIN_DIR}/{PREFIX}flows", "already pinned")
    assert not remove(target).result["changed"]
    assert target.settled_state(PREFIX) == before
    # Other names in the same folder are no hindrance, and stay when ours go.
    target.command("mv", f"{PIN_DIR}/{PREFIX}flows", f"{PIN_DIR}/foreign")
    build(target, source)
    remove(target)
    pins = {path for path in target.state(PREFIX)["pins"] if path.startswith(PIN_DIR)}
    assert pins == {PIN_DIR, f"{PIN_DIR}/foreign"}


# --- bpffs (cilium #47847) --------------------------------------------------------------------------------------------


def test_bpffs_is_mounted_and_unmounted_only_by_its_owner(source: Path) -> None:
    with node(mounted=False) as target:
        dry = build(target, source, dry=True)
        assert dry.result["changed"]
        assert any("ebpf.overlay.bpffs" in str(warning) for warning in dry.result["warnings"])
        assert_refused(build(target, source), "start", "No bpffs is mounted on /sys/fs/bpf")

        assert not target.run("bpffs", state="unmounted").result["changed"]
        assert target.run("bpffs", dry=True).result["changed"]
        assert "bpf" not in target.command("findmnt", "-n", "/sys/fs/bpf", check=False).stdout
        made = target.run("bpffs").result
        assert made["changed"]
        assert made["ours"]
        assert not target.run("bpffs").result["changed"]

        build(target, source)
        kept = target.run("bpffs", state="unmounted").result
        assert not kept["changed"]
        assert "still pinned" in str(kept["warnings"])
        remove(target)
        assert target.run("bpffs", state="unmounted", dry=True).result["changed"]
        assert target.run("bpffs", state="unmounted").result["changed"]
        assert target.command("findmnt", "-n", "/sys/fs/bpf", check=False).stdout == ""


def test_a_bpffs_of_somebody_else_stays(target: Node) -> None:
    assert not target.run("bpffs").result["changed"]
    assert not target.run("bpffs", state="unmounted").result["changed"]
    assert "bpf" in target.command("findmnt", "-n", "/sys/fs/bpf").stdout


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (("mount", "-t", "bpf", "bpf", "/sys/fs/bpf"), ("more than once", "/sys/fs/bpf")),
        (("mount", "-t", "tmpfs", "tmpfs", "/sys/fs/bpf"), ("hidden by a later mount", "tmpfs")),
        (("mount", "-t", "tmpfs", "tmpfs", "/sys/fs"), ("hidden by a later mount", "tmpfs on /sys/fs")),
    ],
)
def test_pins_out_of_sight_are_an_error_cilium_47847(
    target: Node, source: Path, mount: tuple[str, ...], words: Any
) -> None:
    build(target, source)
    target.command(*mount)
    for dry in (True, False):
        assert_refused(build(target, source, dry=dry), "use the bpffs", *words)
        assert_refused(target.run("bpffs", dry=dry), "use the bpffs", *words)
        assert_refused(remove(target, dry=dry), "use the bpffs", *words)
    target.command("umount", mount[-1])
    assert not build(target, source).result["changed"]


# --- through ansible --------------------------------------------------------------------------------------------------


def test_source_is_found_on_the_controller(target: Node, source: Path, tmp_path: Path) -> None:
    """With its headers, from a play's files folder, and under an interpreter that has no bcc."""
    play = tmp_path / "play"
    (play / "files" / "bpf").mkdir(parents=True)
    for name in ("main.c", "tables.h", "sizes.h"):
        (source.parent / name).rename(play / "files" / "bpf" / name)
    (play / "play.yml").write_text(
        "- hosts: localhost\n  gather_facts: false\n  tasks:\n"
        "    - ebpf.overlay.bpf_object: {src: main.c, pin_dir: /sys/fs/bpf/tobj, programs: ["
        f"{PREFIX}first]}}\n"
        "      register: made\n"
        "    - ansible.builtin.assert: {that: [made.compiled == expected, made.changed == expected]}\n"
    )
    for outcome in ("true", "false"):
        done = subprocess.run(
            ["nsenter", "-t", str(target.pid), "-m", "--", sys.executable, "-m", "ansible.cli.playbook",
             str(play / "play.yml"), "-i", "localhost,", "-c", "local", "-e", f'{{"expected": {outcome}}}',
             "-e", f"ansible_python_interpreter={sys.executable}"],
            capture_output=True, text=True, check=False, timeout=300,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8",
                 "ANSIBLE_COLLECTIONS_PATH": f"{ROOT}/collections"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
