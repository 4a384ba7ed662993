# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests use: the nodes and workloads of the lab that is up, as objects.

>>> lab = Lab.load()
>>> lab.nodes[1].run(["ip", "route"]).stdout
>>> lab.workload(2, 1).http_get(lab.nodes[1].ipv4, 30080)
>>> lab.nodes[2].nft_counter("invalid").packets

``nodes`` and ``workloads`` are keyed by number, counted from 1 as in the names.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import namespace, paths
from .cluster import FABRIC, FABRIC_IPV4, FABRIC_IPV6, HTTP_PORT, UPLINK, ClusterPlan, NodePlan, WorkloadPlan
from .filterrules import TABLE
from .paths import LabError

if TYPE_CHECKING:
    from .wirings.direct import Wired

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
}


@dataclass(frozen=True)
class Counter:
    """A counter of the packet filter."""

    packets: int
    bytes: int


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Poll until the condition holds. Raises LabError, naming ``what``, after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not so after {timeout:g} s")
        time.sleep(0.02)


class Endpoint:
    """Something with a network namespace of its own: a node, a workload, the fabric."""

    def __init__(self, name: str, ipv4: str, ipv6: str) -> None:
        self.name = name
        self.ipv4 = ipv4
        self.ipv6 = ipv6

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def netns(self) -> str:
        """The path of the network namespace, for ``nsenter --net=``."""
        return str(namespace.path_of(self.name))

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs ``argv`` there when the machine's shell runs it."""
        return ["nsenter", f"--net={self.netns}", "--", *argv]

    def run(
        self, argv: Sequence[str], check: bool = True, stdin: str | None = None, timeout: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there and wait for it; output is captured as text.

        Raises LabError with the command's error output if ``check`` and its exit status is not 0.
        """
        done = subprocess.run(
            self.command(argv), input=stdin, text=True, capture_output=True, timeout=timeout, check=False
        )
        if check and done.returncode != 0:
            text = (done.stderr or done.stdout).strip()
            raise LabError(f"{self.name}: {' '.join(argv)} ended with {done.returncode}: {text}")
        return done

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command there; options are those of subprocess.Popen."""
        return subprocess.Popen(self.command(argv), **options)

    def host_run(self, argv: Sequence[str], check: bool = True, stdin: str | None = None) -> str:
        """Run one of the machine's own tools (nft, tc, tcpdump, …) in this network namespace; returns its output."""
        done = subprocess.run(
            ["nsenter", f"--net={self.netns}", "--", *argv], input=stdin, text=True, capture_output=True, check=False
        )
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: {' '.join(argv)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def connect(self, address: str, port: int, timeout: float = 5.0) -> socket.socket:
        """A TCP connection from there, as a socket of this process. Raises OSError."""
        return namespace.connect(self.name, address, port, timeout)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket that lives in this network namespace, packet and raw ones included."""
        with namespace.entered(self.name):
            return socket.socket(family, kind, protocol)

    def http_request(self, address: str, port: int = HTTP_PORT, path: str = "/", timeout: float = 5.0) -> bytes:
        """The body of an HTTP answer over a new connection from there. Raises OSError; LabError if it is not a 200."""
        host = f"[{address}]" if ":" in address else address
        with self.connect(address, port, timeout) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = bytearray()
            while chunk := connection.recv(1 << 18):
                answer += chunk
        head, separator, body = bytes(answer).partition(b"\r\n\r\n")
        if not separator or b" 200 " not in head.split(b"\r\n")[0] + b" ":
            raise LabError(f"{self.name}: {address} port {port} answered {bytes(answer[:200])!r}")
        return body

    def http_get(self, address: str, port: int = HTTP_PORT, path: str = "/", timeout: float = 5.0) -> dict[str, Any]:
        """The JSON answer of a workload's server: workload, client, client_port, path. Raises as http_request does."""
        answer: dict[str, Any] = json.loads(self.http_request(address, port, path, timeout))
        return answer

    def interface_counters(self, interface: str) -> dict[str, int]:
        """rx_packets, tx_packets, rx_bytes, rx_dropped, … of one interface. Raises LabError if there is none."""
        links = json.loads(self.host_run(["ip", "-j", "-s", "link", "show", "dev", interface]))
        counters = {}
        for direction, values in links[0]["stats64"].items():
            counters.update({f"{direction}_{name}": int(value) for name, value in values.items()})
        return counters

    def ifindex(self, interface: str) -> int:
        """The interface's index. Raises LabError if there is none."""
        return int(json.loads(self.host_run(["ip", "-j", "link", "show", "dev", interface]))[0]["ifindex"])

    def set_sysctls(self, values: Mapping[str, int | str]) -> None:
        """Write sysctls below /proc/sys/net of this namespace, e.g. ``{"ipv4/ip_forward": 1}``."""
        namespace.set_sysctls(self.name, values)


class Workload(Endpoint):
    """One workload: eth0 inside, ``host_interface`` on its node."""

    def __init__(self, plan: WorkloadPlan, wired: Wired | None = None) -> None:
        super().__init__(plan.name, plan.ipv4, plan.ipv6)
        self.plan = plan
        self.mac = plan.mac
        self._wired = wired

    @property
    def host_interface(self) -> str:
        """The name of its interface on the node."""
        if self._wired is None:
            return self.plan.host_interface
        return self._wired.host_interface(f"{paths.PREFIX}n{self.plan.node_number}", self.plan)

    @property
    def pid(self) -> int | None:
        """PID of the workload's server, None when it does not run."""
        return _recorded_pid(self.name)


class Node(Endpoint):
    """One node: commands run in all of its namespaces, with its own root file system."""

    def __init__(self, plan: NodePlan, wired: Wired | None = None) -> None:
        super().__init__(plan.name, plan.ipv4, plan.ipv6)
        self.plan = plan
        self.uplink = wired.uplinks[0] if wired else UPLINK
        self.workloads = {workload.number: Workload(workload, wired) for workload in plan.workloads}

    @property
    def pid(self) -> int | None:
        """The node's PID 1 as the machine sees it, None when the node is down."""
        return _recorded_pid(self.name)

    def command(self, argv: Sequence[str]) -> list[str]:
        pid = self.pid
        if pid is None:
            raise LabError(f"{self.name} is down")
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        environment = [f"{key}={value}" for key, value in _ENVIRONMENT.items()]
        return ["nsenter", f"--target={pid}", *spaces, "--", "env", "-i", *environment, *argv]

    def nft_counters(self) -> dict[str, Counter]:
        """All counters of the node's packet filter: forwarded, invalid, established, new, nodeport, …"""
        listed = json.loads(self.host_run(["nft", "-j", "list", "counters", "table", "inet", TABLE]))["nftables"]
        counters = [entry["counter"] for entry in listed if "counter" in entry]
        return {entry["name"]: Counter(entry["packets"], entry["bytes"]) for entry in counters}

    def nft_counter(self, name: str) -> Counter:
        """One counter of the node's packet filter."""
        return self.nft_counters()[name]

    def conntrack(self) -> list[dict[str, str | list[str]]]:
        """The node's connection tracking table.

        Per entry: ``family``, ``protocol``, ``timeout`` (seconds left), ``state`` (TCP), ``flags`` (such as ASSURED),
        and for the original and the reply direction ``src dst sport dport packets bytes`` as ``original.src``,
        ``reply.src`` and so on. Values are text.
        """
        with namespace.entered(self.name):
            text = Path("/proc/thread-self/net/nf_conntrack").read_text(encoding="ascii")
        return [_conntrack_entry(line) for line in text.splitlines()]

    def stop(self) -> None:
        """Take the node's power. Its file system is kept."""
        _request(self.name, "stop")

    def start(self, timeout: float = 30.0) -> None:
        """Switch the node on, or off and on again, and wait for its SSH server."""
        from .cli import ssh_answers

        _request(self.name, "start")
        wait_until(lambda: ssh_answers(self.plan), timeout, f"{self.name}: its SSH server answers")


class Lab:
    """The lab that is up on this machine."""

    def __init__(self, cluster: ClusterPlan) -> None:
        self.cluster = cluster
        from . import wirings

        wired = wirings.named(cluster.wiring)
        self.nodes = {node.number: Node(node, wired) for node in cluster.nodes}
        self.fabric = Endpoint(FABRIC, FABRIC_IPV4, FABRIC_IPV6)
        self.inventory = paths.INVENTORY
        self.key = paths.KEY

    @classmethod
    def load(cls) -> Lab:
        """The lab as ``lab up`` recorded it. Raises LabError when none is up."""
        try:
            state = json.loads(paths.STATE.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise LabError("there is no record of one; start it with tests/lab/lab up") from None
        if not state["ready"]:
            raise LabError("it was never finished; tests/lab/lab up builds it anew")
        return cls(ClusterPlan.from_dict(state["plan"]))

    def workload(self, node: int, number: int) -> Workload:
        """Workload ``ovl-n<node>-w<number>``."""
        return self.nodes[node].workloads[number]

    def workloads(self) -> list[Workload]:
        """All workloads of all nodes."""
        return [workload for node in self.nodes.values() for workload in node.workloads.values()]

    def endpoint(self, name: str) -> Endpoint:
        """A node, a workload or the fabric by its name. Raises LabError."""
        everything = [self.fabric, *self.nodes.values(), *self.workloads()]
        for endpoint in everything:
            if endpoint.name == name:
                return endpoint
        raise LabError(f"there is no {name}; there are {', '.join(endpoint.name for endpoint in everything)}")

    def status(self) -> list[dict[str, Any]]:
        """One row per node and workload: name, state (up or down), pid, addresses, interface."""
        from .cli import ssh_answers

        rows = []
        for node in self.nodes.values():
            state = "up" if node.pid is not None and ssh_answers(node.plan) else "down"
            rows.append(_row(node, state, node.pid, node.uplink))
            for workload in node.workloads.values():
                rows.append(_row(workload, "up" if workload.pid else "down", workload.pid, workload.host_interface))
        return rows


def _row(endpoint: Endpoint, state: str, pid: int | None, interface: str) -> dict[str, Any]:
    addresses = {"ipv4": endpoint.ipv4, "ipv6": endpoint.ipv6}
    return {"name": endpoint.name, "state": state, "pid": pid or 0, **addresses, "interface": interface}


def _recorded_pid(name: str) -> int | None:
    try:
        pid = int((paths.PIDS / name).read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None
    return pid if Path(f"/proc/{pid}").exists() else None


def _request(name: str, what: str) -> None:
    """Ask the supervisor, and wait until it has done it."""
    request = paths.REQUESTS / name
    paths.write_atomically(request, what)
    wait_until(lambda: not request.exists(), 30.0, f"{name}: {what}")


def _conntrack_entry(line: str) -> dict[str, str | list[str]]:
    words = line.split()
    entry: dict[str, str | list[str]] = {"family": words[0], "protocol": words[2], "timeout": words[4]}
    flags = []
    seen: set[str] = set()
    for word in words[5:]:
        key, equals, value = word.partition("=")
        if word.startswith("["):
            flags.append(word.strip("[]"))
        elif not equals:
            entry.setdefault("state", word)
        elif key in ("src", "dst", "sport", "dport", "packets", "bytes"):
            # IPv6 addresses are written out in full there.
            plain = str(ipaddress.ip_address(value)) if key in ("src", "dst") else value
            entry[f"{'reply' if key in seen else 'original'}.{key}"] = plain
            seen.add(key)
        else:
            entry[key] = value
    entry["flags"] = flags
    return entry
