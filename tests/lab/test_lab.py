# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab itself: it comes up, does what its description says, and leaves nothing behind however it ends.

These tests build and remove the machine's one lab. They need root.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import base, filterrules, paths, wirings
from lab.api import Lab, wait_until
from lab.cluster import (
    CLUSTER_IPV4,
    CLUSTER_IPV6,
    NODE_PORT,
    OUR_NAMESPACE,
    UPLINK,
    ClusterPlan,
    NodePlan,
    WorkloadPlan,
)
from lab.inventory import SSH_OPTIONS
from lab.paths import PREFIX
from lab.testing import answers, eventually_http, run_lab

FAMILIES = ("ipv4", "ipv6")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    run_lab("up", "--nodes", "3", "--workloads", "2")
    yield Lab.load()
    run_lab("down")


# --- without a lab ------------------------------------------------------------------------------------------------


def test_only_our_own_names_are_ours() -> None:
    ours = [f"{PREFIX}fabric", f"{PREFIX}n1", f"{PREFIX}n20", f"{PREFIX}n3-w12"]
    others = [
        "ovl-x1-n1",
        f"{PREFIX}n0",
        f"{PREFIX}n1-w",
        f"{PREFIX}fabric2",
        f"{PREFIX}n1-x",
        "cali1",
        f"my-{PREFIX}n1",
    ]
    assert [name for name in ours + others if OUR_NAMESPACE.match(name)] == ours


def test_every_name_and_address_of_the_plan_is_unique_and_fits() -> None:
    plan = ClusterPlan(200, 30)
    workloads = [workload for node in plan.nodes for workload in node.workloads]
    assert len({workload.host_interface for workload in workloads}) == len(workloads)
    assert max(len(workload.host_interface) for workload in workloads) <= 15
    everything: list[NodePlan | WorkloadPlan] = [*workloads, *plan.nodes]
    for attribute in ("name", "ipv4", "ipv6", "mac"):
        assert len({getattr(item, attribute) for item in everything}) == len(everything), attribute
    assert all(OUR_NAMESPACE.match(name) for name in plan.namespaces())
    assert ClusterPlan.from_dict(plan.as_dict()) == plan


def test_the_packet_filter_of_a_node_without_workloads_translates_nothing() -> None:
    plan = ClusterPlan(1, 0)
    assert "dnat" not in filterrules.ruleset(plan, plan.nodes[0])


def test_missing_tools_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths.shutil, "which", lambda tool, **_: None if tool in ("nft", "nc") else tool)
    with pytest.raises(paths.LabError, match=r"nft, nc.*apt-get install netcat-openbsd nftables"):
        paths.require_tools(paths.TOOLS)


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths.os, "geteuid", lambda: 1000)
    with pytest.raises(paths.LabError, match="needs root"):
        paths.require_root()


def test_without_the_virtual_environment_the_launcher_says_so() -> None:
    done = run_lab("status", check=False, OVERLAY_PYTHON="/nonexistent/python")
    assert done.returncode == 1
    assert "make setup-lab" in done.stderr


def test_bad_arguments_are_one_line() -> None:
    done = run_lab("up", "--nodes", "0", check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == "lab: --nodes must be between 1 and 200, not 0"
    done = run_lab("up", "--wiring", "copper", check=False)
    assert done.returncode == 2
    names = ", ".join(wirings.NAMES)
    assert done.stderr.strip() == f"lab: building a lab with the wiring copper: there is none; choose one of {names}"


# --- a lab that is up ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("lab")
class TestLab:
    def test_status_shows_every_node_and_workload_up(self) -> None:
        done = run_lab("status")
        assert len(re.findall(rf"^{PREFIX}n\d(-w\d)?\s+up ", done.stdout, re.MULTILINE)) == 9

    def test_ansible_reaches_every_node_from_an_ordinary_shell(self) -> None:
        ansible = Path(sys.executable).with_name("ansible")
        command = [str(ansible), "-i", str(paths.INVENTORY), "overlay_nodes", "-m", "ping"]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(re.findall(rf"{PREFIX}n\d \| SUCCESS", done.stdout)) == 3

    def test_a_fresh_node_is_a_bare_machine_of_its_own(self, lab: Lab) -> None:
        seen = set()
        for node in lab.nodes.values():
            assert node.run(["hostname"]).stdout.strip() == node.name
            assert node.run(["cat", "/etc/hostname"]).stdout.strip() == node.name
            hosts = node.run(["cat", "/etc/hosts"]).stdout
            assert all(f"{other.ipv4} {other.name}" in hosts for other in lab.nodes.values())
            for module in ("bcc", "pyroute2"):
                assert node.run(["python3", "-c", f"import {module}"], check=False).returncode != 0
            assert " bpf " not in node.run(["cat", "/proc/mounts"]).stdout
            assert "cgroup2 /sys/fs/cgroup" in node.run(["cat", "/proc/mounts"]).stdout
            assert node.run(["readlink", "/proc/self/exe"]).stdout
            seen.add(node.run(["cat", "/etc/machine-id", "/proc/sys/kernel/random/boot_id"]).stdout)
            seen.add(node.run(["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).stdout)
        assert len(seen) == 6

    def test_a_node_cannot_change_the_machine_s_sysctls(self, lab: Lab) -> None:
        node = lab.nodes[1]
        node.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
        sysrq = ["/proc/sysrq-trigger"] if os.path.exists("/proc/sysrq-trigger") else []
        for path in ("/proc/sys/kernel/panic", *sysrq):
            assert "Read-only" in node.run(["sh", "-c", f"echo 0 > {path}"], check=False).stderr

    def test_pid_1_reaps_orphans(self, lab: Lab) -> None:
        node = lab.nodes[1]
        node.run(["sh", "-c", "(sleep 0.1 &) ; (sleep 0.1 &)"])
        time.sleep(0.5)
        assert "Z" not in node.run(["ps", "-eo", "stat="]).stdout

    @pytest.mark.parametrize("family", FAMILIES)
    def test_http_between_everybody(self, lab: Lab, family: str) -> None:
        target = lab.workload(2, 1)
        for client in (lab.fabric, lab.nodes[1], lab.nodes[2], lab.workload(1, 1), lab.workload(2, 2)):
            answer = client.http_get(getattr(target, family))
            assert answer["workload"] == target.name
            assert answer["client"] == getattr(client, family)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_node_port_leads_to_the_first_workload(self, lab: Lab, family: str) -> None:
        before = lab.nodes[2].nft_counter("nodeport").packets
        for client in (lab.fabric, lab.nodes[1], lab.workload(1, 1), lab.workload(2, 1), lab.workload(2, 2)):
            assert client.http_get(getattr(lab.nodes[2], family), NODE_PORT)["workload"] == f"{PREFIX}n2-w1"
        assert lab.nodes[2].nft_counter("nodeport").packets == before + 5

    @pytest.mark.parametrize("address", [CLUSTER_IPV4, CLUSTER_IPV6])
    def test_the_cluster_address_leads_to_the_next_node(self, lab: Lab, address: str) -> None:
        assert lab.workload(1, 2).http_get(address)["workload"] == f"{PREFIX}n2-w1"
        assert lab.nodes[3].http_get(address)["workload"] == f"{PREFIX}n1-w1"

    @pytest.mark.parametrize("family", FAMILIES)
    def test_traffic_that_leaves_the_pod_range_is_masqueraded(self, lab: Lab, family: str) -> None:
        with lab.fabric.socket(socket.AF_INET6 if family == "ipv6" else socket.AF_INET) as listener:
            listener.bind((getattr(lab.fabric, family), 0))
            listener.listen()
            with lab.workload(1, 1).connect(getattr(lab.fabric, family), listener.getsockname()[1]):
                connection, client = listener.accept()
                connection.close()
        assert client[0] == getattr(lab.nodes[1], family)

    def test_forwarded_packets_are_counted_and_tracked(self, lab: Lab) -> None:
        node, workload = lab.nodes[2], lab.workload(2, 2)
        before = node.nft_counters()
        with lab.nodes[1].connect(workload.ipv4, 8081) as connection:
            connection.sendall(b"x" * 1000)
            received = b""
            while len(received) < 1000:
                received += connection.recv(1000)
            port = str(connection.getsockname()[1])
            entries = [entry for entry in node.conntrack() if entry.get("original.sport") == port]
        assert [entry["state"] for entry in entries] == ["ESTABLISHED"]
        assert entries[0]["reply.src"] == workload.ipv4
        assert int(str(entries[0]["original.bytes"])) > 1000
        after = node.nft_counters()
        assert after["forwarded"].packets > before["forwarded"].packets
        assert after["new"].packets == before["new"].packets + 1
        assert after["invalid"] == before["invalid"]

    def test_an_invalid_packet_is_dropped_and_counted(self, lab: Lab) -> None:
        node, workload = lab.nodes[2], lab.workload(2, 1)
        before = node.nft_counter("invalid").packets
        # A TCP segment with the flags SYN and FIN: no connection tracking state allows it.
        segment = bytes.fromhex("30391f90 00000001 00000000 5003ffff 00000000".replace(" ", ""))
        with lab.fabric.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
            raw.sendto(segment, (workload.ipv4, 0))
        wait_until(lambda: node.nft_counter("invalid").packets == before + 1, 2.0, "INVALID counted the segment")

    def test_calico_s_wiring(self, lab: Lab) -> None:
        node, workload = lab.nodes[2], lab.workload(2, 1)
        routes = node.run(["ip", "route"]).stdout
        assert f"{workload.ipv4} dev {workload.host_interface} scope link" in routes
        assert f"10.244.1.0/24 via 198.18.0.11 dev {UPLINK}" in routes
        assert "default via 198.18.0.1 dev" in routes
        assert "ee:ee:ee:ee:ee:ee" in node.run(["ip", "link", "show", workload.host_interface]).stdout
        assert "default via 169.254.1.1 dev eth0" in workload.run(["ip", "route"]).stdout
        assert "default via fe80::ecee:eeff:feee:eeee dev eth0" in workload.run(["ip", "-6", "route"]).stdout
        assert node.ifindex(workload.host_interface) > 0
        assert node.interface_counters(UPLINK)["rx_packets"] > 0

    def test_packages_install_without_a_network(self, lab: Lab) -> None:
        node = lab.nodes[3]
        node.run(["apt-get", "update"])
        node.run(["apt-get", "install", "-y", *base.READY_PACKAGES])
        assert node.run(["python3", "-c", "import bcc, pyroute2"]).returncode == 0
        assert lab.nodes[1].run(["python3", "-c", "import bcc"], check=False).returncode != 0

    def test_a_reboot_keeps_the_files_and_nothing_else(self, lab: Lab) -> None:
        node = lab.nodes[3]
        identity = node.run(["cat", "/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub"]).stdout
        boot_id = node.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout
        node.run(["sh", "-c", "echo kept > /root/kept; echo gone > /run/gone; tc qdisc add dev ens47f1 clsact"])
        assert "clsact" in node.run(["tc", "qdisc", "show", "dev", UPLINK]).stdout
        pid = node.pid
        node.run(["reboot", "-f"], check=False)
        wait_until(lambda: node.pid not in (None, pid) and answers(node), 10.0, f"{PREFIX}n3 is back")
        assert node.run(["cat", "/root/kept"]).stdout == "kept\n"
        assert node.run(["cat", "/run/gone"], check=False).returncode != 0
        assert "clsact" not in node.run(["tc", "qdisc", "show", "dev", UPLINK]).stdout
        assert node.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout != boot_id
        assert node.run(["cat", "/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub"]).stdout == identity
        assert eventually_http(lab, node) == f"{PREFIX}n3-w1"

    def test_a_node_without_power_is_away_until_it_is_switched_on(self, lab: Lab) -> None:
        node = lab.nodes[3]
        node.stop()
        assert node.pid is None
        assert run_lab("status", check=False).returncode == 1
        with pytest.raises((TimeoutError, ConnectionError, OSError), match=r"timed out|No route|unreachable"):
            lab.fabric.connect(node.ipv4, 22, timeout=0.3)
        node.start()
        assert eventually_http(lab, node) == f"{PREFIX}n3-w1"
        assert run_lab("status").returncode == 0

    def test_a_machine_that_loses_its_sshd_gets_it_back(self, lab: Lab) -> None:
        node = lab.nodes[1]
        node.run(["pkill", "-x", "sshd"])
        wait_until(lambda: answers(node), 5.0, "sshd is back")

    def test_ssh_works_with_the_key_and_the_options_of_the_inventory(self, lab: Lab) -> None:
        options = " ".join(SSH_OPTIONS)
        command = f"ssh -i {lab.key} {options} root@{lab.nodes[1].ipv4} hostname"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == (f"{PREFIX}n1\n", "")
