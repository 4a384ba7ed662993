# SPDX-License-Identifier: GPL-3.0-or-later
"""What is checked on every system, in order: each check goes on where the one before it ended."""

from __future__ import annotations

import platform
import socket
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.api import Endpoint
from lab.cluster import HTTP_PORT, UPLINK

from ansible_collections.ebpf.overlay.plugins.module_utils import _topology
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import BPFFS, PIN_DIR

from .modules import expect, made, refused, run, settled, state
from .network import Network, peer_facts

NEIGH, PEER = 1, 2  # as in settings.h
PACKAGES = ["linux-libc-dev", "python3-bpfcc", "python3-pyroute2"]
SERVICES = [{"protocol": "tcp", "port": HTTP_PORT}]
FAST = {"uplink.to_workload", "workload.to_uplink"}
BULK = 3_000_000  # bytes: enough for segments of 64 KiB


@dataclass
class Story:
    """``expected``: the capabilities of this system. ``bundle``: the packed source of the datapath."""

    expected: dict[str, bool]
    bundle: str
    network: Network = field(default_factory=Network)
    pristine: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)

    def build(self, redirect: int) -> dict[str, Any]:
        """The arguments of ``bpf_object``."""
        defines = {"OVERLAY_REDIRECT": redirect, "OVERLAY_CHECK_MTU": self.expected["check_mtu"]}
        programs = ["from_uplink", "from_workload"]
        return {"bundle": self.bundle, "pin_dir": PIN_DIR, "programs": programs, "defines": defines}

    def attachments(self) -> dict[str, Any]:
        return {"attachments": self.plan["attachments"], "purge": True}


def facts(story: Story) -> None:
    """overlay_facts finds the network and knows what this kernel can do."""
    story.network.build()
    told = run("overlay_facts", uplinks=[], workload_interfaces=["cali*"])["ansible_facts"]["overlay"]
    print(f"  {platform.release()}, Python {platform.python_version()}, {told['capabilities']}", flush=True)
    expect(told["capabilities"] == story.expected, f"capabilities {told['capabilities']}, not {story.expected}")
    expect(told["libraries"] == {"bcc": True, "pyroute2": True}, f"libraries {told['libraries']}")
    expect([uplink["name"] for uplink in told["uplinks"]] == [UPLINK], f"uplinks {told['uplinks']}")
    workload = story.network.workload
    found = {(entry["address"], entry["interface"]) for entry in told["workloads"]}
    expect(found == {(a, workload.host_interface) for a in (workload.ipv4, workload.ipv6)}, f"workloads {found}")
    both = {"here": told, "there": peer_facts()}
    picture = _topology.build_picture(both, fresh=both)
    story.plan = _topology.plan_node("here", told, picture, SERVICES)
    made("overlay_packages", changes=False, packages=PACKAGES)
    story.pristine = state()


def build(story: Story) -> None:
    """The datapath compiles without kernel headers, and this kernel's verifier takes it."""
    expect(not list(Path("/lib/modules").glob("*/build")), "there are kernel headers")
    made("bpffs")
    built = made("bpf_object", **story.build(NEIGH))
    sizes = {program["name"]: program["xlated_size"] for program in built["programs"]}
    print(f"  bytes of the programs: {sizes}", flush=True)


def maps(story: Story) -> None:
    """bpf_map_sync fills the maps, takes entries out again, and bpf_map_info reads what it wrote."""
    for name in ("ifindex_map", "services", "peers"):
        path, entries = f"{PIN_DIR}/{name}", story.plan["maps"][name]
        made("bpf_map_sync", map=path, entries=entries, purge=True)
        read = run("bpf_map_info", map=path)["entries"]
        keys = sorted(str(entry["key"]) for entry in read)
        expect(keys == sorted(str(entry["key"]) for entry in entries), f"{name} holds {keys}")
    # More than one batch of entries, and a purge of all but the first.
    path, entries = f"{PIN_DIR}/ifindex_map", story.plan["maps"]["ifindex_map"]
    many = [{**entries[0], "key": f"10.244.9.{number}"} for number in range(200)]
    made("bpf_map_sync", map=path, entries=many)
    made("bpf_map_sync", map=path, entries=entries, purge=True)


def attach(story: Story) -> None:
    """tc_bpf_attach makes clsact qdiscs and filters, and tc_bpf_info finds them."""
    made("tc_bpf_attach", mechanism="clsact", **story.attachments())
    made("bpf_map_sync", map=f"{PIN_DIR}/devices", entries=story.plan["maps"]["devices"], purge=True)
    told = run("tc_bpf_info", interface=[entry["interface"] for entry in story.plan["attachments"]])["interfaces"]
    for interface in told:
        owners = [entry["owner"] for entry in interface["ingress"]]
        expect(owners == ["ebpf.overlay"], f"owners on {interface['name']}: {owners}")


def mode(story: Story) -> None:
    """Until the mode is on, and when a lease is over, every packet takes the kernel's path."""
    _kernel_path(story)
    made("overlay_mode", mode="on")
    _fast_path(story)
    made("overlay_mode", mode="off", drain_timeout=5)
    _kernel_path(story)
    run("overlay_mode", mode="on", lease=1)
    time.sleep(1.1)
    _kernel_path(story)
    refused("overlay_mode", "lease", mode="confirm")
    run("overlay_mode", mode="on", lease=300)
    made("overlay_mode", mode="confirm")


def neigh(story: Story) -> None:
    """bpf_redirect_neigh carries flows of both families, opened from either side."""
    _fast_path(story)


def peer(story: Story) -> None:
    """The same program with bpf_redirect_peer takes its place; what the maps hold stays."""
    made("bpf_object", **story.build(PEER))
    made("tc_bpf_attach", mechanism="clsact", **story.attachments())
    made("overlay_mode", changes=False, mode="on")
    _fast_path(story)


def tcx(story: Story) -> None:
    """Where the kernel has TCX the filters become links and filters again; elsewhere both runs refuse alike."""
    wanted = {"mechanism": "tcx", **story.attachments()}
    if not story.expected["tcx"]:
        print(f"  {refused('tc_bpf_attach', 'TCX', '6.6', **wanted)}", flush=True)
        return
    made("tc_bpf_attach", **wanted)
    _fast_path(story)
    made("tc_bpf_attach", mechanism="clsact", **story.attachments())
    _fast_path(story)


def off(story: Story) -> None:
    """Connections on the fast path survive the switch to off, since conntrack takes them over."""
    before = _invalid(story)
    with ExitStack() as stack:
        opened = [stack.enter_context(client.connect(address, HTTP_PORT, 30)) for client, address in _ways(story)]
        for connection in opened:
            _ask(connection)
        told = made("overlay_mode", mode="off", drain_timeout=0.2)
        expect(told["handed_over"] == len(opened), f"{told['handed_over']} of {len(opened)} flows were handed over")
        for connection in opened:
            _ask(connection)
            port = connection.getsockname()[1]
            expect(_tracked(port), f"conntrack does not know the connection from port {port}")
    expect(_invalid(story) == before, f"{_invalid(story) - before} packets were INVALID")
    _kernel_path(story)


def removal(story: Story) -> None:
    """What was there before is what is left."""
    made("tc_bpf_attach", attachments=[], purge=True)
    made("bpf_object", pin_dir=PIN_DIR, state="absent")
    made("bpffs", path=BPFFS, state="unmounted", emptied=[PIN_DIR])
    settled(story.pristine, "the whole")


CHECKS = (facts, build, maps, attach, mode, neigh, peer, tcx, off, removal)
# Without these nothing else can pass.
FOUNDATIONS = (facts, build, maps, attach)


# --- traffic ----------------------------------------------------------------------------------------------------------


def _ways(story: Story) -> list[tuple[Endpoint, str]]:
    """Client and server address: flows that are opened from the uplink and by the workload, of both families."""
    workload, remote = story.network.workload, story.network.peer
    return [
        (client, address)
        for client, server in ((remote, workload), (workload, remote))
        for address in (server.ipv4, server.ipv6)
    ]


def _fast_path(story: Story) -> None:
    """The overlay carries every packet, and the packet filter and conntrack see none."""
    for client, address in _ways(story):
        stats, forwarded, invalid = _stats(), _forwarded(story), _invalid(story)
        port = _exchange(client, address)
        grown = {key: value - stats.get(key, 0) for key, value in _stats().items() if value != stats.get(key, 0)}
        what = f"{client.name} to {address}: "
        expect(all(grown.get(name, 0) > 10 for name in FAST), f"{what}the overlay counted {grown}")
        expect(_forwarded(story) == forwarded, f"{what}{_forwarded(story) - forwarded} packets in FORWARD; {grown}")
        expect(_invalid(story) == invalid, f"{what}{_invalid(story) - invalid} INVALID packets")
        expect(not _tracked(port), f"{what}conntrack knows the connection")


def _kernel_path(story: Story) -> None:
    """The packet filter sees every packet, and the overlay redirects none."""
    for client, address in _ways(story):
        stats, forwarded = _stats(), _forwarded(story)
        _exchange(client, address)
        after = _stats()
        what = f"{client.name} to {address}: "
        expect(all(after.get(name, 0) == stats.get(name, 0) for name in FAST), f"{what}the overlay redirects: {after}")
        expect(_forwarded(story) > forwarded + 10, f"{what}FORWARD saw {_forwarded(story) - forwarded} packets")


def _exchange(client: Endpoint, address: str) -> int:
    """A few small answers and a big one over one connection, to its end; returns the client's port."""
    with client.connect(address, HTTP_PORT, 30) as connection:
        for _ in range(5):
            _ask(connection)
        _ask(connection, BULK)
        port = int(connection.getsockname()[1])
        connection.shutdown(socket.SHUT_WR)
        expect(connection.recv(1) == b"", "the server went on after the end")
    return port


def _ask(connection: socket.socket, length: int = 100) -> None:
    connection.sendall(f"GET /bytes/{length} HTTP/1.1\r\nHost: matrix\r\n\r\n".encode())
    answer = bytearray()
    while b"\r\n\r\n" not in answer or len(answer) < answer.index(b"\r\n\r\n") + 4 + length:
        chunk = connection.recv(1 << 20)
        expect(chunk, f"the connection ended after {len(answer)} bytes")
        answer += chunk


def _stats() -> dict[str, int]:
    """Packets by direction and reason; none before the datapath is loaded."""
    entries = run("bpf_map_info", map=f"{PIN_DIR}/stats")["entries"]
    return {str(entry["key"]): int(entry["value"]["packets"]) for entry in entries}


def _forwarded(story: Story) -> int:
    return story.network.node.nft_counter("forwarded").packets


def _invalid(story: Story) -> int:
    return story.network.node.nft_counter("invalid").packets


def _tracked(port: int) -> bool:
    for family in ("ipv4", "ipv6"):
        command = ["conntrack", "-L", "-f", family, "-p", "tcp", "--sport", str(port)]
        if f"sport={port} " in subprocess.run(command, capture_output=True, text=True, check=True).stdout:
            return True
    return False
