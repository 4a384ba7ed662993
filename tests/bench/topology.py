# SPDX-License-Identifier: GPL-3.0-or-later
"""client - veth - node - veth - workload, in namespaces of our own, and a direct veth between the two ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import layout
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.control import jiffies_per_second
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.topology import place_devices
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.tc import TrafficControl

from .objects import BenchError, Loaded

CLIENT, NODE, WORKLOAD = "ovl-xbench-client", "ovl-xbench-node", "ovl-xbench-workload"
UPLINK, HOST_SIDE = "ens47f1", "cali0"
UPLINK_MAC, HOST_SIDE_MAC = "02:00:00:00:00:11", "02:00:00:00:00:22"
PORT = 8080

CLIENT_IPV4, NODE_IPV4, WORKLOAD_IPV4 = "198.18.0.1", "198.18.0.11", "10.244.1.10"
CLIENT_IPV6, NODE_IPV6, WORKLOAD_IPV6 = "fd00:198:18::1", "fd00:198:18::b", "fd00:10:244:1::a"
DIRECT_CLIENT, DIRECT_WORKLOAD = "192.0.2.1", "192.0.2.2"
CLIENTS = ("198.18.0.0/24", "fd00:198:18::/64")
MTU = 1500

# No bridge anywhere: with one in the path the floor is out of reach.
_COMMANDS = f"""
-n {NODE} link add {UPLINK} address {UPLINK_MAC} type veth peer name eth0 netns {CLIENT}
-n {NODE} link add {HOST_SIDE} address {HOST_SIDE_MAC} type veth peer name eth0 netns {WORKLOAD}
-n {CLIENT} link add direct type veth peer name direct netns {WORKLOAD}
-n {CLIENT} addr add {CLIENT_IPV4}/24 dev eth0
-n {CLIENT} addr add {CLIENT_IPV6}/64 dev eth0 nodad
-n {CLIENT} addr add {DIRECT_CLIENT}/30 dev direct
-n {NODE} addr add {NODE_IPV4}/24 dev {UPLINK}
-n {NODE} addr add {NODE_IPV6}/64 dev {UPLINK} nodad
-n {WORKLOAD} addr add {WORKLOAD_IPV4}/32 dev eth0
-n {WORKLOAD} addr add {WORKLOAD_IPV6}/128 dev eth0 nodad
-n {WORKLOAD} addr add {DIRECT_WORKLOAD}/30 dev direct
-n {CLIENT} link set eth0 up
-n {CLIENT} link set direct up
-n {WORKLOAD} link set eth0 up
-n {WORKLOAD} link set direct up
-n {NODE} link set {UPLINK} up
-n {NODE} link set {HOST_SIDE} up
-n {CLIENT} route add 10.244.1.0/24 via {NODE_IPV4}
-n {CLIENT} route add fd00:10:244:1::/64 via {NODE_IPV6}
-n {NODE} route add default via {CLIENT_IPV4}
-n {NODE} route add {WORKLOAD_IPV4} dev {HOST_SIDE} scope link
-n {NODE} route add {WORKLOAD_IPV6} dev {HOST_SIDE}
-n {WORKLOAD} route add 169.254.1.1 dev eth0 scope link
-n {WORKLOAD} route add default via 169.254.1.1 dev eth0
"""
_SYSCTLS = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    # As systemd and Calico leave them: loose on the uplink, strict on a workload.
    f"ipv4/conf/{UPLINK}/rp_filter": "2",
    f"ipv4/conf/{HOST_SIDE}/rp_filter": "1",
    f"ipv4/conf/{HOST_SIDE}/proxy_arp": "1",
    f"ipv4/neigh/{HOST_SIDE}/proxy_delay": "0",
}


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _enter(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as file:
        if libc.setns(file.fileno(), 0x40000000):
            raise OSError(ctypes.get_errno(), "setns", path)


def _delete_all() -> None:
    for name in (CLIENT, NODE, WORKLOAD):
        if os.path.exists(f"/var/run/netns/{name}"):
            ip("netns", "delete", name)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Inside, this process is in the node's network namespace."""
    _delete_all()
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        for name in (CLIENT, NODE, WORKLOAD):
            ip("netns", "add", name)
            _enter(f"/var/run/netns/{name}")
            for key in ("all", "default"):  # link-local addresses are good at once, for the first packet
                Path(f"/proc/sys/net/ipv6/conf/{key}/accept_dad").write_text("0", encoding="ascii")
            ip("-n", name, "link", "set", "lo", "up")
        for line in _COMMANDS.strip().splitlines():
            ip(*line.split())
        _enter(f"/var/run/netns/{NODE}")
        for key, value in _SYSCTLS.items():
            Path("/proc/sys/net", key).write_text(value, encoding="ascii")
        yield
    finally:
        _enter(f"/proc/self/fd/{home}")
        os.close(home)
        _delete_all()


# -- the packet filter ------------------------------------------------------------------------------------------------


def filter_packets(many: int) -> None:
    """What a node of the lab has (tests/lab/filterrules.py): three rules in forward, translation of a node port and
    masquerade. ``many``: how many more there are in prerouting and as many in forward, which every packet walks past.
    """
    walked_past = "\n".join(f"ip saddr 203.0.113.{i % 256} drop" for i in range(many))
    text = f"""
        flush ruleset
        table ip many {{
            chain prerouting {{ type filter hook prerouting priority mangle; policy accept; {walked_past}
            }}
            chain forward {{ type filter hook forward priority mangle; policy accept; {walked_past}
            }}
        }}
        {"" if many else "delete table ip many"}
        table inet bench {{
            chain forward {{
                type filter hook forward priority filter; policy accept;
                ct state invalid counter drop
                ct state established,related counter accept
                ct state new counter accept
            }}
            chain prerouting {{
                type nat hook prerouting priority dstnat; policy accept;
                meta nfproto ipv4 fib daddr type local tcp dport 30080 counter dnat ip to {WORKLOAD_IPV4}:{PORT}
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr 10.244.1.0/24 ip daddr != 10.244.0.0/16 oifname "{UPLINK}" counter masquerade
            }}
        }}"""
    done = subprocess.run(["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"nft: {done.stderr.strip()}")


def tracked(client_port: int) -> bool:
    """Whether the node's conntrack knows the connection from this port of the client."""
    done = subprocess.run(["conntrack", "-L", "-p", "tcp", "--sport", str(client_port)],
                          capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        raise BenchError(f"conntrack: {done.stderr.strip()}")
    return bool(done.stdout.strip())


# -- the programs -----------------------------------------------------------------------------------------------------


def ifindexes() -> tuple[int, int]:
    """Uplink and workload's host side."""
    return socket.if_nametoindex(UPLINK), socket.if_nametoindex(HOST_SIDE)


@contextlib.contextmanager
def attached(from_uplink: int, from_workload: int, tcx: bool = False, watchers: Sequence[int] = ()) -> Iterator[None]:
    """The two programs at TC ingress, by clsact unless ``tcx``, as ``tc_bpf_attach`` does it.

    ``watchers``: those at TC egress of workload and uplink, if there are any.
    """
    uplink, host_side = ifindexes()
    hooks = [(uplink, "ingress", from_uplink), (host_side, "ingress", from_workload)]
    hooks += zip((host_side, uplink), ("egress", "egress"), watchers)
    if tcx:
        types = {"ingress": bpf.ATTACH_TCX_INGRESS, "egress": bpf.ATTACH_TCX_EGRESS}
        links = [bpf.link_create_tcx(program, ifindex, types[direction]) for ifindex, direction, program in hooks]
        try:
            yield
        finally:
            for link in links:
                os.close(link)
        return
    with TrafficControl() as traffic_control:
        for ifindex in ifindexes():
            traffic_control.add_clsact(ifindex)
        for ifindex, direction, program in hooks:
            traffic_control.add_filter(ifindex, direction, 50, 1, "bench", program)
        try:
            yield
        finally:
            for ifindex in ifindexes():
                traffic_control.delete_clsact(ifindex)


def fill_original(loaded: Loaded) -> None:
    uplink, host_side = ifindexes()
    loaded.write("ifindex_map", {WORKLOAD_IPV4: host_side, "0.0.0.0": uplink}.items(), {"ifindex_map": ("ipv4", "u32")})


def fill_overlay(loaded: Loaded) -> None:
    """The maps of a node with one workload whose clients are on the uplink's network."""
    uplink, host_side = ifindexes()
    workload = {"ifindex": host_side, "flags": 0}
    loaded.write("ifindex_map", ((address, workload) for address in (WORKLOAD_IPV4, WORKLOAD_IPV6)), layout.SCHEMAS)
    loaded.write("services", [(PORT, layout.PROTOCOLS["tcp"])], layout.SCHEMAS)
    loaded.write("peers", ((prefix, "peer") for prefix in CLIENTS), layout.SCHEMAS)
    loaded.write("devices", place_devices((uplink, host_side))[0], layout.SCHEMAS)


def set_mode(loaded: Loaded, mode: str, second: int = jiffies_per_second()) -> None:
    """``second``: jiffies until a heartbeat is due, and a little more."""
    entry = {"deadline": 0, "mode": mode, "epoch": 1, "generation": 1, "second": second}
    loaded.write("control", [(0, entry)], layout.SCHEMAS)
