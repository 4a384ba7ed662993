# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports with a conntrack helper, from what the node's tools print, and what is refused because of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.ebpf.overlay.plugins.filter.conntrack import conntrack_refusals
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.conntrack import LIBERAL
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import helper_ports

SAVED = "iptables-legacy-save"


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("-p tcp -m tcp --dport 21 -j CT --helper ftp", {("ftp", 21, 21)}),
        ("-p tcp -m tcp --dport 2000:2010 -j CT --helper ftp", {("ftp", 2000, 2010)}),
        ("-p tcp -m multiport --dports 21,2121:2130 -j CT --helper ftp", {("ftp", 21, 21), ("ftp", 2121, 2130)}),
        ("-s 10.0.0.0/8 -p tcp -j CT --helper sip", {("sip", 1, 65535)}),
        ("-p tcp -m tcp ! --dport 80 -j CT --helper ftp", {("ftp", 1, 65535)}),
        ("-p udp -m udp --dport 69 -j CT --helper tftp", set()),
        ("-p tcp -m tcp --dport 8080 -j CT --notrack", set()),
        ("-p tcp -m tcp --dport 21 -j CT --zone 7 --helper ftp", {("ftp", 21, 21)}),
        ("-p tcp -m tcp --dport 21 -j ACCEPT", set()),
    ],
)
def test_rule_of_iptables(rule: str, found: set[tuple[str, int, int]]) -> None:
    saved = f"*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {rule}\nCOMMIT\n"
    assert {one[:3] for one in helper_ports.from_saved(saved, SAVED)} == found
    assert {one[3] for one in helper_ports.from_saved(saved, SAVED)} <= {SAVED}


def test_helpers_that_assign_themselves(tmp_path: Path) -> None:
    """Linux before 6.0: by the sysctl, on the ports of the modules that are loaded."""
    sysctl = tmp_path / "nf_conntrack_helper"
    for module, ports in (("ftp", "21,2121\n"), ("sip", None)):
        folder = tmp_path / f"nf_conntrack_{module}" / "parameters"
        folder.mkdir(parents=True)
        if ports:
            (folder / "ports").write_text(ports)
    for value, found in (("0\n", []), ("1\n", [("ftp", 21), ("ftp", 2121), ("sip", 5060)]), (None, [])):
        if value is None:
            sysctl.unlink()
        else:
            sysctl.write_text(value)
        told = helper_ports._automatic(str(sysctl), str(tmp_path))
        assert sorted((helper, first) for helper, first, _last, _by in told) == found


HELPER = {"helper": "ftp", "first": 20, "last": 21, "by": "a rule"}


def hosts(conntrack: dict[str, Any] | None, **variables: Any) -> dict[str, Any]:
    overlay = {} if conntrack is None else {"conntrack": conntrack}
    return {"n1": {"ansible_facts": {"overlay": overlay}, **variables}, "n2": {}}


@pytest.mark.parametrize("forbidden", [False, "false", "no", 0])
def test_strict_conntrack_is_refused_where_nobody_may_change_it(forbidden: object) -> None:
    strict = hosts({"loaded": True, "liberal": False, "helpers": []}, overlay_conntrack_liberal=forbidden)
    (told,) = conntrack_refusals(strict, strict, [])
    assert told.startswith("n1: ")
    assert LIBERAL in told
    for allowed in ({"liberal": True, "helpers": []}, None):
        fine = hosts(allowed, overlay_conntrack_liberal=forbidden)
        assert conntrack_refusals(fine, fine, []) == []
    willing = hosts({"loaded": True, "liberal": False, "helpers": []})
    assert conntrack_refusals(willing, willing, []) == []


@pytest.mark.parametrize(("port", "refused"), [(19, False), (20, True), (21, True), (22, False)])
def test_service_with_a_helper_is_refused_by_port_and_node(port: int, refused: bool) -> None:
    services = [{"port": 8080}, {"port": port}]
    own = hosts({"helpers": [HELPER]}, overlay_services=services)
    for known, given in ((hosts({"helpers": [HELPER]}), services), (own, [])):
        told = conntrack_refusals(known, known, given)
        assert len(told) == refused
        assert all(one.startswith(f"n1: the service on port {port} ") and "helper ftp" in one for one in told)
    forced = hosts({"helpers": [HELPER]}, overlay_helper_ports="ignore")
    assert conntrack_refusals(forced, forced, services) == []
