# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is wrong with the facts, no map loses or gains a wrong entry: the run is right, or it stops with names.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet import play, state
from fleet.datapath import AT_ONCE
from lab import paths
from lab.api import Lab, Node
from lab.paths import PREFIX

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import PIN_DIR, SCHEMAS
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.codec import Codec
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.pinned import opened

CACHE = "ANSIBLE_CACHE_PLUGIN_CONNECTION"
Maps = dict[str, dict[str, Any]]


def entries(node: Node) -> Maps:
    """The entries of the maps that facts fill; none where no overlay is."""
    found = {}
    for name in ("ifindex_map", "peers", "devices"):
        key, value = (Codec(schema, what) for schema, what in zip(SCHEMAS[name], ("key", "value"), strict=True))
        with opened(f"/proc/{node.pid}/root{PIN_DIR}/{name}") as pinned:
            raw = pinned.read(lambda copies: copies[0]) if pinned else {}
            found[name] = {str(key.decode(k)): value.decode(v) for k, v in raw.items()}
    return found


def maps(lab: Lab) -> dict[str, Maps]:
    return {node.name: entries(node) for node in lab.nodes.values()}


def of_node(lab: Lab, number: int) -> set[str]:
    """What other nodes' map of peers must hold of a node."""
    plan = lab.nodes[number].plan
    return {f"{plan.ipv4}/32", f"{plan.ipv6}/128", plan.pods_ipv4, plan.pods_ipv6}


def site(
    folder: Path, *options: str, hosts: Mapping[str, Any] | None = None, without: str = "", **variables: Any
) -> play.Run:
    """site.yml on the lab's inventory, with more ``hosts`` in the group and ``without`` one of its own."""
    inventory = yaml.safe_load(paths.INVENTORY.read_text(encoding="utf-8"))
    group = inventory["overlay_nodes"]
    group["vars"]["ansible_ssh_private_key_file"] = str(paths.KEY)
    for name, values in (hosts or {}).items():
        group["hosts"][name] = {**group["hosts"].get(name, {}), **values}
    group["hosts"].pop(without, None)
    path = folder / "inventory.yml"
    path.write_text(json.dumps(inventory), encoding="utf-8")
    return play.playbook("site.yml", *options, variables={**AT_ONCE, **variables}, inventory=path)


def foretold(folder: Path, *options: str, **more: Any) -> play.Run:
    """The run, which changed what a dry run before it foretold."""
    predicted = site(folder, "--check", "--diff", *options, **more)
    done = site(folder, *options, **more)
    assert done.changes == predicted.changes
    return done


def assert_refused(done: play.Run, *names: str) -> None:
    assert done.code != 0
    assert done.changes == set(), done.output
    told = done.output.partition("PLAY RECAP")[0]
    for name in names:
        assert name in told, done.output


@pytest.fixture(scope="module")
def lab(ready_lab: Lab) -> Lab:
    return ready_lab


def test_a_node_that_joins_comes_to_the_maps_of_the_others(lab: Lab, tmp_path: Path) -> None:
    site(tmp_path, without=f"{PREFIX}n3").succeeded()
    before = maps(lab)
    assert of_node(lab, 2) <= set(before[f"{PREFIX}n1"]["peers"])
    assert not of_node(lab, 3) & set(before[f"{PREFIX}n1"]["peers"])
    foretold(tmp_path).succeeded()
    after = maps(lab)
    for number, other in ((1, 2), (2, 1)):
        former, now = before[f"{PREFIX}n{number}"]["peers"], after[f"{PREFIX}n{number}"]["peers"]
        assert former.items() <= now.items()
        assert of_node(lab, 3) | of_node(lab, other) <= set(now)
    assert of_node(lab, 1) | of_node(lab, 2) <= set(after[f"{PREFIX}n3"]["peers"])


def test_limit_without_facts_of_the_others_is_refused(lab: Lab, tmp_path: Path) -> None:
    before = maps(lab)
    assert_refused(site(tmp_path, "--limit", f"{PREFIX}n1"), f"{PREFIX}n2 (no facts)", f"{PREFIX}n3 (no facts)")
    assert maps(lab) == before


def test_limit_that_keeps_purges_nothing(lab: Lab, tmp_path: Path) -> None:
    before = maps(lab)
    done = foretold(
        tmp_path, "--limit", f"{PREFIX}n1", overlay_unreachable_policy="keep", overlay_services=[{"port": 9090}]
    ).succeeded()
    assert {host for host, _task in done.changes} == {f"{PREFIX}n1"}
    assert maps(lab) == before


def test_cached_facts_serve_a_limited_run_until_they_are_old(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANSIBLE_CACHE_PLUGIN", "jsonfile")
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    site(tmp_path).succeeded()
    before = maps(lab)
    assert site(tmp_path, "--limit", f"{PREFIX}n1").succeeded().changes == set()
    assert_refused(
        site(tmp_path, "--limit", f"{PREFIX}n1", overlay_facts_max_age=1),
        f"{PREFIX}n2 (its cached facts",
        f"{PREFIX}n3 (its cached",
    )
    assert maps(lab) == before


@pytest.mark.parametrize(
    ("hosts", "names"),
    [
        ({"ovl-twin": {"ansible_host": "198.18.0.11"}}, (f"{PREFIX}n1 and ovl-twin", "198.18.0.11")),
        ({f"{PREFIX}n2": {"ansible_connection": "local"}}, (f"node {PREFIX}n2", "those of the controller")),
        (
            {"localhost": {"ansible_connection": "local"}, f"{PREFIX}n2": {"ansible_connection": "local"}},
            (f"{PREFIX}n2",),
        ),
    ],
    ids=["two hosts with one address", "connection that leaked", "localhost"],
)
def test_facts_of_the_wrong_machine_are_refused(
    lab: Lab, tmp_path: Path, hosts: dict[str, Any], names: tuple[str, ...]
) -> None:
    before = maps(lab)
    for options in ([], ["--check"]):
        assert_refused(site(tmp_path, *options, hosts=hosts), *names)
    assert maps(lab) == before


def test_dead_node_is_refused_by_name_or_kept(lab: Lab, tmp_path: Path) -> None:
    before = maps(lab)
    lab.nodes[3].stop()
    try:
        assert_refused(site(tmp_path), f"{PREFIX}n3 (it could not be reached or read)")
        done = foretold(tmp_path, overlay_unreachable_policy="keep", overlay_services=[{"port": 7070}])
        assert done.code != 0
        others = [node for number, node in lab.nodes.items() if number != 3]
        assert {host for host, _task in done.changes} == {node.name for node in others}
        assert {node.name: entries(node) for node in others} == {node.name: before[node.name] for node in others}
    finally:
        lab.nodes[3].start()


def test_node_that_is_taken_out_leaves_the_maps_of_the_others(lab: Lab, tmp_path: Path) -> None:
    before = {name: found["peers"] for name, found in maps(lab).items()}
    foretold(tmp_path, without=f"{PREFIX}n3", overlay_unreachable_policy="keep").succeeded()
    for number, other in ((1, 2), (2, 1)):
        now = entries(lab.nodes[number])["peers"]
        gone = set(before[f"{PREFIX}n{number}"]) - set(now)
        assert of_node(lab, 3) <= gone
        assert now.items() <= before[f"{PREFIX}n{number}"].items()
        assert of_node(lab, other) <= set(now)


def test_node_that_is_retired_loses_the_overlay_and_leaves_the_maps_of_the_others(lab: Lab, tmp_path: Path) -> None:
    leaving, others = lab.nodes[3], [lab.nodes[1], lab.nodes[2]]
    site(tmp_path).succeeded()
    assert all(of_node(lab, 3) <= set(entries(node)["peers"]) for node in others)
    leaving.stop()
    try:
        done = site(tmp_path, overlay_retire=[leaving.name]).succeeded()
    finally:
        leaving.start()
    assert f"{leaving.name}: LEFT BEHIND, it could not be reached" in " ".join(done.output.split())
    assert not any(of_node(lab, 3) & set(entries(node)["peers"]) for node in others)
    site(tmp_path).succeeded()  # it is back

    done = foretold(tmp_path, overlay_retire=leaving.name).succeeded()
    assert f"{leaving.name}: was retired: the overlay is off, and the other nodes' maps" in done.output
    assert {host for host, _task in done.changes} == {node.name for node in lab.nodes.values()}
    assert not any(of_node(lab, 3) & set(entries(node)["peers"]) for node in others)
    bare = state.observe(leaving)
    assert (bare.pins or (), bare.filters) == ((), ())
    assert not [path for path in bare.files if "ebpf-overlay" in path]
    assert site(tmp_path, overlay_retire=leaving.name).succeeded().changes == set()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("nobody", "no such host is in the group"),
        (",".join(f"{PREFIX}n{one}" for one in (1, 2, 3)), "no node would stay"),
    ],
    ids=["a name that is no node", "all nodes"],
)
def test_who_cannot_be_retired_is_refused(lab: Lab, tmp_path: Path, names: str, words: str) -> None:
    before = maps(lab)
    assert_refused(site(tmp_path, overlay_retire=names), words)
    assert maps(lab) == before
