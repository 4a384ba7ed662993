# SPDX-License-Identifier: GPL-3.0-or-later
"""Conntrack made liberal and strict again, under connections most of whose packets it did not see.

client (10.79.1.2) --- c, node, s --- server (10.79.2.2)

The node drops what is INVALID. A rule that takes packets past conntrack stands for the fast path.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from integration.conntrack_entries import fill
from integration.host import Host
from integration.tc_sandbox import MODULES, PYTHON, arguments_of, environment, result

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.conntrack import DEFAULTS, LIBERAL, NAMES
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import conntrack

FILE = "/etc/sysctl.d/60-ebpf-overlay.conf"
RECORD = "/var/lib/ebpf-overlay/conntrack.json"
CLIENT, SERVER, PORT = "10.79.1.2", "10.79.2.2", 9000
CONNECTIONS = 100
BULK = 1 << 20
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)

RULES = f"""
table inet t {{
    counter invalid {{ }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        ct state invalid counter name invalid drop
    }}
}}
table inet fast {{
    chain prerouting {{
        type filter hook prerouting priority raw; policy accept;
        tcp dport {PORT} notrack
        tcp sport {PORT} notrack
    }}
}}
"""


@contextlib.contextmanager
def inside(host: Host) -> Iterator[None]:
    """This thread in the host's network namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/proc/{host.pid}/ns/net", os.O_RDONLY)
    assert LIBC.setns(there, CLONE_NEWNET) == 0
    try:
        yield
    finally:
        LIBC.setns(home, CLONE_NEWNET)
        os.close(there)
        os.close(home)


class Network:
    def __init__(self) -> None:
        self.client, self.node, self.server = Host(), Host(), Host()
        self.node.shell("mount -t tmpfs tmpfs /etc/sysctl.d; mount -t tmpfs tmpfs /var/lib")
        for end, name, number in ((self.client, "c", 1), (self.server, "s", 2)):
            link = ["ip", "link", "add", "eth0", "netns", end.pid, "type", "veth", "peer", "name", name]
            subprocess.run([*link, "netns", self.node.pid], check=True)
            self.node.shell(f"ip address add 10.79.{number}.1/24 dev {name}; ip link set {name} up")
            end.shell(f"ip address add 10.79.{number}.2/24 dev eth0; ip link set eth0 up")
            end.shell(f"ip route add default via 10.79.{number}.1")
        self.node.shell("echo 1 >/proc/sys/net/ipv4/ip_forward")
        self.listener = self._listen()

    def _listen(self) -> socket.socket:
        with inside(self.server):
            return socket.create_server((SERVER, PORT), backlog=CONNECTIONS)

    def end(self) -> None:
        self.listener.close()
        for host in (self.client, self.node, self.server):
            host.end()

    def module(self, *prefix: str, check: bool = False, **params: Any) -> dict[str, Any]:
        return self.run("overlay_conntrack", *prefix, check=check, **params)

    def run(self, name: str, *prefix: str, check: bool = False, **params: Any) -> dict[str, Any]:
        command = self.node.enter(*prefix, PYTHON, "-m", f"{MODULES}.{name}")
        given = arguments_of(check, params)
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, check=False, env=environment(), cwd="/"
        )
        return result(done.returncode, done.stdout + done.stderr)

    def both(self, **params: Any) -> dict[str, Any]:
        """A dry run, which must change nothing and say what the real run that follows does; the latter's result."""
        before = self.state()
        dry = self.module(check=True, **params)
        assert self.state() == before, "the dry run changed something"
        real = self.module(**params)
        assert "loaded" in real, real
        for key in ("changed", "liberal", "settings", "former", "diff"):
            assert dry[key] == real[key], (key, dry, real)
        return real

    def state(self) -> str:
        values = " ".join(f"/proc/sys/{name.replace('.', '/')}" for name in NAMES)
        return self.node.shell(f"cat {values}; find /etc/sysctl.d /var/lib -type f -exec head -v -n 99 {{}} +")

    def sysctl(self, name: str) -> int:
        return int(self.node.shell(f"sysctl -n {name}"))

    def invalid(self) -> int:
        found = re.search(r"packets (\d+)", self.node.shell("nft list counter inet t invalid"))
        assert found
        return int(found[1])

    def filter(self, fast: bool) -> None:
        self.node.run("nft", "-f", "-", input=f"flush ruleset\n{RULES}" + ("" if fast else "delete table inet fast\n"))


@pytest.fixture
def network() -> Iterator[Network]:
    built = Network()
    yield built
    built.end()


def connections(network: Network) -> list[tuple[socket.socket, socket.socket]]:
    pairs = []
    for __ in range(CONNECTIONS):
        with inside(network.client):
            client = socket.create_connection((SERVER, PORT), timeout=5)
        server, _address = network.listener.accept()
        server.settimeout(5)
        pairs.append((client, server))
    return pairs


def send(client: socket.socket, server: socket.socket, size: int) -> None:
    sender = threading.Thread(target=client.sendall, args=(bytes(size),))
    sender.start()
    left = size
    while left:
        left -= len(server.recv(min(left, 1 << 16)))
    sender.join()


def goes_on(pair: tuple[socket.socket, socket.socket]) -> bool:
    """Whether a byte arrives in either direction within a second."""
    for one, other in (pair, pair[::-1]):
        one.sendall(b"x")
        other.settimeout(1)
        try:
            assert other.recv(1) == b"x"
        except TimeoutError:
            return False
    return True


def frozen(network: Network) -> list[tuple[socket.socket, socket.socket]]:
    """Live connections whose handshake conntrack saw, and then nothing but a byte each way beyond its windows."""
    network.filter(fast=False)
    pairs = connections(network)
    network.filter(fast=True)
    for client, server in pairs:
        send(client, server, BULK)
        send(server, client, BULK)
    network.filter(fast=False)
    assert all(goes_on(pair) for pair in pairs)
    return pairs


def test_there_and_back(network: Network) -> None:
    before = network.state()
    established = network.sysctl("net.netfilter.nf_conntrack_tcp_timeout_established")
    set_ = network.both()
    assert set_["changed"]
    assert set_["settings"] == dict(zip(NAMES, (1, 1, established, established)))
    assert {name: network.sysctl(name) for name in NAMES} == set_["settings"]
    assert set_["former"] == {name: DEFAULTS[name] for name in NAMES}
    assert f"{LIBERAL} = 0\n" in set_["diff"]["before"]
    assert f"{LIBERAL} = 1\n" in set_["diff"]["after"]
    assert not network.both()["changed"]

    network.node.shell(f"sysctl -qw {LIBERAL}=0; rm {FILE}")
    assert network.both()["changed"]
    assert network.sysctl(LIBERAL) == 1

    gone = network.both(state="absent")
    assert (gone["changed"], gone["liberal"], gone["held"]) == (True, False, "")
    assert network.state() == before
    assert network.node.shell("ls -A /var/lib /etc/sysctl.d").split() == ["/etc/sysctl.d:", "/var/lib:"]
    assert not network.both(state="absent")["changed"]


def test_the_file_says_what_the_module_sets(network: Network) -> None:
    """As it is read at boot."""
    wanted = network.module()["settings"]
    for name in NAMES:
        network.node.shell(f"sysctl -qw {name}=1")
    network.node.shell(f"sysctl -q -p {FILE}")
    assert {name: network.sysctl(name) for name in NAMES} == wanted


def test_values_of_the_users_own_come_back(network: Network) -> None:
    own = {LIBERAL: 1, NAMES[1]: 0, NAMES[2]: 77, NAMES[3]: 88}
    network.node.shell("".join(f"sysctl -qw {name}={value}\n" for name, value in own.items()))
    assert network.module()["former"] == own
    assert network.module(state="absent")["settings"] == own
    assert {name: network.sysctl(name) for name in NAMES} == own


def test_whoever_forbids_it_is_told_which_sysctl_is_missing(network: Network) -> None:
    before = network.state()
    for check in (True, False):
        refused = network.module(check=check, manage=False)
        assert (refused["rc"], refused["error"]["target"]) == (1, f"{LIBERAL} is 0")
        assert f"sysctl -w {LIBERAL}=1" in refused["error"]["advice"]
    assert network.state() == before
    network.node.shell(f"sysctl -qw {LIBERAL}=1")
    assert not network.both(manage=False)["changed"]


def test_record_that_cannot_be_read_is_an_error_that_names_it(network: Network) -> None:
    network.module()
    before = network.state()
    for content in ("", "{", '{"format": 99, "former": {}}'):
        network.node.shell(f"echo '{content}' >{RECORD}")
        for state in ("present", "absent"):
            refused = network.module(state=state)
            assert refused["rc"] == 1
            assert refused["error"]["target"] == RECORD
    assert network.sysctl(LIBERAL) == 1
    network.node.shell(f"rm {RECORD}")
    assert network.module(state="absent")["settings"] == {name: DEFAULTS[name] for name in NAMES}
    assert network.state() != before


@pytest.mark.parametrize("options", ["size=4k", "nr_inodes=2"])
def test_a_disk_that_is_full_leaves_no_half_file(network: Network, options: str) -> None:
    network.node.shell(f"umount /etc/sysctl.d; mount -t tmpfs -o {options} tmpfs /etc/sysctl.d")
    network.node.shell("head -c 4096 /dev/zero >/etc/sysctl.d/ballast")
    refused = network.module()
    assert (refused["error"]["target"], refused["error"]["errno"]) == (FILE, "ENOSPC")
    assert FILE not in network.node.shell("find /etc/sysctl.d").split()
    assert network.module(state="absent")["changed"]
    assert network.node.shell("ls -A /etc/sysctl.d /var/lib").split() == ["/etc/sysctl.d:", "ballast", "/var/lib:"]
    assert {name: network.sysctl(name) for name in NAMES} == {name: DEFAULTS[name] for name in NAMES}


def test_connections_outlast_the_way_back(network: Network) -> None:
    network.module()
    pairs = frozen(network)
    invalid = network.invalid()
    done = network.module(state="absent")
    assert (done["flagged"], done["held"]) == (CONNECTIONS, "")
    assert network.sysctl(LIBERAL) == 0
    assert sum(goes_on(pair) for pair in pairs) == CONNECTIONS
    for client, server in pairs[:10]:
        send(client, server, BULK)
        send(server, client, BULK)
    assert network.invalid() == invalid
    # Nothing but the flags has changed: they end as connections do.
    for pair in pairs:
        for one in pair:
            one.close()
    deadline = time.monotonic() + 5
    while "ESTABLISHED" in network.node.shell("cat /proc/net/nf_conntrack"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_without_flags_the_same_connections_die(network: Network) -> None:
    """The control of the test above."""
    network.module()
    pairs = frozen(network)
    network.node.shell(f"sysctl -qw {LIBERAL}=0")
    alive: list[bool] = []
    tried = [threading.Thread(target=lambda pair=pair: alive.append(goes_on(pair))) for pair in pairs]
    for one in tried:
        one.start()
    for one in tried:
        one.join()
    assert (len(alive), sum(alive)) == (CONNECTIONS, 0)
    assert network.invalid() >= CONNECTIONS


def test_half_closed_connections_outlast_it_too(network: Network) -> None:
    network.module()
    pairs = frozen(network)[:3]
    for client, _server in pairs:
        client.shutdown(socket.SHUT_WR)
    time.sleep(0.2)
    assert network.node.shell("cat /proc/net/nf_conntrack").count("CLOSE_WAIT") == len(pairs)
    network.module(state="absent")
    for client, server in pairs:
        send(server, client, BULK)


def test_connections_that_cannot_be_flagged_keep_conntrack_liberal(network: Network) -> None:
    network.module()
    pairs = frozen(network)
    # strace stands for a kernel without ctnetlink: it refuses the socket.
    deny = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=bind", "-e", "inject=bind:error=EPROTONOSUPPORT")
    for changed in (True, False):
        done = network.module(*deny, state="absent")
        assert (done["rc"], done["changed"], done["liberal"]) == (0, changed, True)
        assert "EPROTONOSUPPORT" in done["held"]
        assert f"sysctl -w {LIBERAL}=0" in done["warnings"][0]
    assert network.sysctl(LIBERAL) == 1
    assert all(goes_on(pair) for pair in pairs)
    assert network.node.shell("ls /etc/sysctl.d") == ""
    # The next run that can does.
    assert network.module(state="absent")["flagged"] == CONNECTIONS
    assert all(goes_on(pair) for pair in pairs)


def test_flags_of_a_large_table(network: Network) -> None:
    count = 10_000
    with inside(network.node):
        fill(count)
        assert conntrack.flag_live_entries() == count
        assert conntrack.flag_live_entries() == 0
    assert network.node.shell("wc -l </proc/net/nf_conntrack").split() == [str(count)]


# Rule -> TCP ports that have the helper by it.
ASSIGNED = {
    'tcp dport 21 ct helper set "ftp"': {("ftp", 21, 21)},
    'tcp dport { 22, 30-40 } ct helper set "ftp"': {("ftp", 22, 22), ("ftp", 30, 40)},
    'tcp dport 50-60 ct helper set "ftp"': {("ftp", 50, 60)},
    'tcp dport @some ct helper set "ftp"': {("ftp", 2121, 2121), ("ftp", 2200, 2200)},
    'tcp dport @ranges ct helper set "ftp"': {("ftp", 3000, 3010), ("ftp", 4000, 4000)},
    'th dport 99 meta l4proto tcp ct helper set "ftp"': {("ftp", 99, 99)},
    'udp dport 5060 ct helper set "sip"': set(),
    'ip saddr 10.0.0.1 ct helper set "ftp"': {("ftp", 1, 65535)},
    'tcp dport != 9 ct helper set "ftp"': {("ftp", 1, 65535)},
    'tcp dport & 0xff == 8 ct helper set "ftp"': {("ftp", 1, 65535)},
    'ct helper "ftp" accept': set(),
    "tcp dport 21 accept": set(),
}
OBJECTS = """
table inet t {
    ct helper ftp { type "ftp" protocol tcp; }
    ct helper sip { type "sip" protocol udp; }
    set some { type inet_service; flags timeout; elements = { 2121 timeout 1h, 2200 } }
    set ranges { type inet_service; flags interval; elements = { 3000-3010, 4000 } }
    chain c { type filter hook prerouting priority 0; RULE; }
}
"""


@pytest.mark.parametrize("rule", ASSIGNED)
def test_facts_know_the_ports_that_have_a_helper(network: Network, rule: str) -> None:
    network.node.run("nft", "-f", "-", input=OBJECTS.replace("RULE", rule))
    done = network.run("overlay_facts")
    helpers = done["ansible_facts"]["overlay"]["conntrack"]["helpers"]
    assert {(one["helper"], one["first"], one["last"]) for one in helpers} == ASSIGNED[rule]
    assert {one["by"] for one in helpers} <= {"a rule in inet t c"}


def test_facts_know_whether_conntrack_is_liberal(network: Network) -> None:
    for liberal in (0, 1):
        network.node.shell(f"sysctl -qw {LIBERAL}={liberal}")
        told = network.run("overlay_facts")["ansible_facts"]["overlay"]["conntrack"]
        assert (told["loaded"], told["liberal"], told["settings"][LIBERAL]) == (True, bool(liberal), liberal)
