# SPDX-License-Identifier: GPL-3.0-or-later
"""Dead nodes and cached facts: who is dead is named, whoever is well is not blamed, and nothing wrong is believed.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet import play
from fleet.cut import cut_at
from fleet.datapath import AT_ONCE
from fleet.generation import history
from lab import paths
from lab.api import Lab
from lab.paths import PREFIX

SITE = "site.yml"


def services(*ports: int) -> dict[str, Any]:
    return {**AT_ONCE, "overlay_services": [{"port": port} for port in (8080, *ports)]}


def said(done: play.Run) -> str:
    return " ".join(done.output.split()).replace("''", "'")


def digests(lab: Lab) -> dict[str, str]:
    return {node.name: history(node)["digest"] for node in lab.nodes.values()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_CACHE_PLUGIN", "jsonfile")
    monkeypatch.setenv("ANSIBLE_CACHE_PLUGIN_CONNECTION", str(cache))


@pytest.fixture(scope="module")
def lab(ready_lab: Lab) -> Lab:
    return ready_lab


def test_dead_node_is_named_before_any_change_whatever_a_cache_knows_of_it(lab: Lab) -> None:
    play.playbook(SITE, variables=services()).succeeded()
    before = digests(lab)
    lab.nodes[3].stop()
    try:
        done = play.playbook(SITE, variables=services(9090))
        assert done.code != 0
        assert done.changes == set(), done.output
        assert f"facts are missing of {PREFIX}n3 (it could not be reached or read)" in said(done)
    finally:
        lab.nodes[3].start()
    assert digests(lab) == before


def test_prober_outside_the_limit_that_is_dead_is_replaced_and_named(lab: Lab) -> None:
    """ovl-n3, whose facts are cached, would probe ovl-n2."""
    play.playbook(SITE, variables=services()).succeeded()
    before = digests(lab)
    lab.nodes[3].stop()
    try:
        done = play.playbook(SITE, "--limit", f"{PREFIX}n1,{PREFIX}n2", variables=services(9090)).succeeded()
    finally:
        lab.nodes[3].start()
    after = digests(lab)
    assert [name for name in after if after[name] != before[name]] == [f"{PREFIX}n1", f"{PREFIX}n2"]
    assert f"{PREFIX}n2: rolled out and confirmed" in said(done)
    assert f"{PREFIX}n2: Probed 10.244.2.11:8080" in said(done)
    assert f"{PREFIX}n3: DID NOT ANSWER when it was to probe {PREFIX}n2: " in said(done)


def test_prober_that_dies_in_mid_run_is_replaced_and_blamed_itself(lab: Lab) -> None:
    play.playbook(SITE, variables=services()).succeeded()
    variables = {**services(7070), "overlay_batches": [1, "100%"]}
    with cut_at(lab.nodes[1], "Read the overlay's counters over a new connection", batch=2) as begun:
        done = play.playbook(SITE, variables=variables, begun=begun)
    assert done.code != 0
    for name in digests(lab):
        assert f"{name}: rolled out and confirmed" in said(done), done.output
    assert f"{PREFIX}n1: DID NOT ANSWER when it was to probe {PREFIX}n3: " in said(done)
    failed = {result.host for result in done.failed() if result.outcome == "failed"}
    assert failed == {f"{PREFIX}n1"}


def emptied(facts: dict[str, Any]) -> None:
    facts.clear()


def of_the_future(facts: dict[str, Any]) -> None:
    facts["gathered_at"] = time.time() + 7200


def without_a_date(facts: dict[str, Any]) -> None:
    del facts["gathered_at"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (emptied, f"{PREFIX}n3 (its cached facts are incomplete)"),
        (of_the_future, f"{PREFIX}n3 (its cached facts are from the future, by 7"),
        (without_a_date, f"{PREFIX}n3 (its cached facts have no date)"),
    ],
)
def test_cached_facts_that_cannot_be_right_are_refused(
    lab: Lab, cache: Path, spoil: Callable[[dict[str, Any]], None], words: str
) -> None:
    before = digests(lab)
    file = next(path for path in cache.rglob(f"*{PREFIX}n3") if path.is_file())
    whole = file.read_text(encoding="utf-8")
    file.write_text(spoiled(whole, spoil), encoding="utf-8")
    try:
        done = play.playbook(SITE, "--limit", f"{PREFIX}n1", variables=services(9090))
    finally:
        file.write_text(whole, encoding="utf-8")
    assert done.code != 0
    assert done.changes == set()
    assert words in said(done), done.output
    assert digests(lab) == before


def spoiled(text: str, spoil: Callable[[dict[str, Any]], None]) -> str:
    """A file of the cache with other facts of the overlay. Newer versions of Ansible wrap the facts, as text."""
    found = json.loads(text)
    if "__payload__" in found:
        return json.dumps({**found, "__payload__": spoiled(found["__payload__"], spoil)})
    spoil(found["overlay"])
    return json.dumps(found)


def test_cached_facts_of_another_machine_are_refused(lab: Lab, tmp_path: Path) -> None:
    """The inventory reaches the node under another address than when its facts were gathered."""
    play.playbook(SITE, variables=services()).succeeded()
    inventory = yaml.safe_load(paths.INVENTORY.read_text(encoding="utf-8"))
    inventory["overlay_nodes"]["vars"]["ansible_ssh_private_key_file"] = str(paths.KEY)
    inventory["overlay_nodes"]["hosts"][f"{PREFIX}n3"]["ansible_host"] = "10.9.8.7"
    path = tmp_path / "inventory.yml"
    path.write_text(json.dumps(inventory), encoding="utf-8")
    done = play.playbook(SITE, "--limit", f"{PREFIX}n1,{PREFIX}n2", variables=services(9090), inventory=path)
    assert done.code != 0
    assert done.changes == set()
    assert f"{PREFIX}n3 (its cached facts are of another machine: they were gathered from 198.18.0.13, the" in said(
        done
    )
    assert len(lab.nodes) >= 3
