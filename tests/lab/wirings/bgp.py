# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes by BIRD, with a mesh of iBGP between the nodes, as Calico does it: each node keeps its block of addresses as a
blackhole route and tells the others of it."""

from __future__ import annotations

from typing import Any

from .. import links, paths
from ..cluster import ClusterPlan, NodePlan
from . import direct

_FOLDER = paths.RUN_DIR / "bird"
_AS = 64512  # Calico's default


class Wired(direct.Wired):
    tools = {"bird": "bird2"}

    def route(self, cluster: ClusterPlan, node: NodePlan, ipr: Any) -> None:
        del ipr
        _FOLDER.mkdir(exist_ok=True)
        paths.CONNECTIONS.mkdir(mode=0o700, exist_ok=True)
        for family, block in blocks(node).items():
            if not _blocks_file(node, family).exists():  # what was added stays over a reboot
                _blocks_file(node, family).write_text(_kept(block), encoding="ascii")
        (_FOLDER / f"{node.name}.conf").write_text(_configuration(cluster, node), encoding="ascii")

    def processes(self, cluster: ClusterPlan, node: NodePlan) -> dict[str, list[str]]:
        del cluster
        command = ["bird", "-f", "-c", str(_FOLDER / f"{node.name}.conf"), "-s", _control(node)]
        return {f"{node.name}-bird": command}

    def awaited(self, cluster: ClusterPlan) -> str:
        for node in cluster.nodes:
            for other in cluster.others(node):
                for block in blocks(other).values():
                    if not direct.link_of_route(node.name, block):
                        return f"the route of {node.name} to {block}"
        return ""


def blocks(node: NodePlan) -> dict[int, str]:
    """By address family the first block of addresses for workloads, of the size that Calico gives them."""
    return {4: f"10.244.{node.number}.0/26", 6: f"fd00:10:244:{node.number}::/122"}


def add_block(node: NodePlan, block: str) -> None:
    """One more block for the running node, of which it tells the others at once. Raises LabError."""
    with open(_blocks_file(node, 6 if ":" in block else 4), "a", encoding="ascii") as kept:
        kept.write(_kept(block))
    links.run_in(node.name, ["birdc", "-s", _control(node), "configure"])


def _kept(block: str) -> str:
    return f"route {block} blackhole;\n"


def _blocks_file(node: NodePlan, family: int) -> Any:
    return _FOLDER / f"{node.name}.blocks{family}"


def _control(node: NodePlan) -> str:
    return str(paths.CONNECTIONS / f"bird-{node.name}")


def _configuration(cluster: ClusterPlan, node: NodePlan) -> str:
    """After Calico's templates for BIRD (confd/etc/calico/confd/templates in its source)."""
    text = f"""
        router id {node.ipv4};
        log stderr all;
        protocol device {{ scan time 2; }}
        protocol direct {{ interface -"cali*", "*"; ipv4; ipv6; }}
    """
    for family, own in ((4, node.ipv4), (6, node.ipv6)):
        channel = f"ipv{family}"
        text += f"""
        protocol static blocks{family} {{
            {channel};
            include "{_blocks_file(node, family)}";
        }}
        protocol kernel kernel{family} {{
            persist; scan time 2; merge paths on;
            {channel} {{ import none; export where source != RTS_DEVICE; }};
        }}
        template bgp mesh{family} {{
            local {own} as {_AS};
            connect delay time 1; connect retry time 1; error wait time 1, 5;
            {channel} {{ import all; export where proto = "blocks{family}"; }};
        }}
        """
        for other in cluster.others(node):
            far = other.ipv4 if family == 4 else other.ipv6
            text += f"protocol bgp node{other.number}_{family} from mesh{family} {{ neighbor {far} as {_AS}; }}\n"
    return text
