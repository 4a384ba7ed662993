# SPDX-License-Identifier: GPL-3.0-or-later
"""What is checked on every system, in order: each check goes on where the one before it ended."""

from __future__ import annotations

import platform
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from lab.cluster import HTTP_PORT, UPLINK

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import BPFFS, PIN_DIR

from .generations import generation
from .modules import expect, made, outcome, refused, run, settled, state
from .story import NEIGH, PACKAGES, PEER, Story
from .traffic import ask, fast_path, kernel_path, seen, tracked, ways


def facts(story: Story) -> None:
    """overlay_facts finds the network and knows what this kernel can do."""
    story.network.build()
    told = story.gather()
    print(f"  {platform.release()}, Python {platform.python_version()}, {told['capabilities']}", flush=True)
    expect(told["capabilities"] == story.expected, f"capabilities {told['capabilities']}, not {story.expected}")
    expect(told["libraries"] == {"bcc": True, "pyroute2": True, "headers": True}, f"libraries {told['libraries']}")
    expect([uplink["name"] for uplink in told["uplinks"]] == [UPLINK], f"uplinks {told['uplinks']}")
    workload = story.network.workload
    found = {(entry["address"], entry["interface"]) for entry in told["workloads"]}
    expect(found == {(a, workload.host_interface) for a in (workload.ipv4, workload.ipv6)}, f"workloads {found}")
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
    for name, prefix in (("ifindex_map", ""), ("peers", "/32")):
        path, entries = f"{PIN_DIR}/{name}", story.plan["maps"][name]
        many = [{**entries[0], "key": f"10.99.{number // 250}.{number % 250}{prefix}"} for number in range(500)]
        made("bpf_map_sync", map=path, entries=many)
        made("bpf_map_sync", map=path, entries=entries, purge=True)


def attach(story: Story) -> None:
    """tc_bpf_attach makes clsact qdiscs and filters, and tc_bpf_info finds them."""
    made("tc_bpf_attach", mechanism="clsact", **story.attachments())
    made("bpf_map_sync", map=f"{PIN_DIR}/devices", entries=story.plan["maps"]["devices"], purge=True)
    told = run("tc_bpf_info", interface=[entry["interface"] for entry in story.plan["attachments"]])["interfaces"]
    for interface in told:
        owners = [[entry["owner"] for entry in interface[hook]] for hook in ("ingress", "egress")]
        expect(owners == [["ebpf.overlay"], ["ebpf.overlay"]], f"owners on {interface['name']}: {owners}")


def conntrack(_story: Story) -> None:
    """Until conntrack is liberal the mode cannot become on; every kernel has the sysctls that it needs."""
    told = outcome("overlay_mode", {"mode": "on"}, False)
    expect("nf_conntrack_tcp_be_liberal is 0" in str(told.get("msg")), f"a strict conntrack is accepted: {told}")
    settings = made("overlay_conntrack")["settings"]
    newer = tuple(map(int, platform.release().split(".")[:2])) >= (5, 14)
    expect(len(settings) == (4 if newer else 3), f"the sysctls that were set are {settings}")


def mode(story: Story) -> None:
    """Until the mode is on, and when a lease is over, every packet takes the kernel's path."""
    kernel_path(story.network)
    made("overlay_mode", mode="on")
    fast_path(story.network)
    made("overlay_mode", mode="off")
    kernel_path(story.network)
    run("overlay_mode", mode="on", lease=1)
    time.sleep(1.1)
    kernel_path(story.network)
    refused("overlay_mode", "lease", mode="confirm")
    run("overlay_mode", mode="on", lease=3600)
    made("overlay_mode", mode="confirm")


def neigh(story: Story) -> None:
    """bpf_redirect_neigh carries flows of both families, opened from either side."""
    fast_path(story.network)


def peer(story: Story) -> None:
    """The same program with bpf_redirect_peer takes its place; what the maps hold stays."""
    made("bpf_object", **story.build(PEER))
    made("tc_bpf_attach", mechanism="clsact", **story.attachments())
    made("overlay_mode", changes=False, mode="on")
    fast_path(story.network)


def mtu(story: Story) -> None:
    """How large packets may be is learned from the kernel, where the uplink and the workload's side take less, too."""
    for size in (1400, 1500):
        for side in (UPLINK, story.network.workload.host_interface):
            subprocess.run(["ip", "link", "set", "dev", side, "mtu", str(size)], check=True)
        fast_path(story.network)


def tcx(story: Story) -> None:
    """Where the kernel has TCX the filters become links and filters again; elsewhere both runs refuse alike."""
    wanted = {"mechanism": "tcx", **story.attachments()}
    if not story.expected["tcx"]:
        print(f"  {refused('tc_bpf_attach', 'TCX', '6.6', **wanted)}", flush=True)
        return
    made("tc_bpf_attach", **wanted)
    fast_path(story.network)
    made("tc_bpf_attach", mechanism="clsact", **story.attachments())
    fast_path(story.network)


def off(story: Story) -> None:
    """Connections on the fast path survive the switch to off, without preparation: conntrack has them all along."""
    before = seen(story.network, "invalid")
    with ExitStack() as stack:
        clients = ways(story.network)
        opened = [stack.enter_context(client.connect(address, HTTP_PORT, 30)) for client, address in clients]
        for connection in opened:
            ask(connection)
        made("overlay_mode", mode="off")
        for connection in opened:
            ask(connection)
            port = connection.getsockname()[1]
            expect(tracked(port), f"conntrack does not know the connection from port {port}")
    after = seen(story.network, "invalid")
    expect(after == before, f"{after - before} packets were INVALID")
    kernel_path(story.network)


def removal(story: Story) -> None:
    """What was there before is what is left."""
    made("tc_bpf_attach", attachments=[], purge=True)
    made("bpf_object", pin_dir=PIN_DIR, state="absent")
    made("bpffs", path=BPFFS, state="unmounted", emptied=[PIN_DIR])
    made("overlay_conntrack", state="absent")
    settled(story.pristine, "the whole")


CHECKS = (facts, build, maps, attach, conntrack, mode, neigh, peer, mtu, tcx, off, removal, generation)
# Without these nothing else can pass.
FOUNDATIONS = (facts, build, maps, attach, conntrack)
