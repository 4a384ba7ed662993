# SPDX-License-Identifier: GPL-3.0-or-later
"""overlay_probe on the real datapath: client - node - workload, in namespaces of their own.

client (198.18.0.1, fd00:198:18::1) --- ens47f1, node, cali0 --- workload (10.244.1.10, fd00:10:244:1::a)

The client is another node's workload too (10.244.2.10), for connections that the workload opens.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import objects, topology
from lab import namespace

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import layout
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import probe as overlay_probe
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.flows import read_counters, read_flows
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.probe import Probe
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import keepalives
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.workload_namespace import NotEnteredError, inside

PINS = f"{tempfile.gettempdir()}/overlay-probe-test"  # a bpffs of its own, not the machine's
CLIENT_PORT = 8080  # the client has the service too, for a workload that connects
TARGET: dict[str, Any] = {"address": topology.WORKLOAD_IPV4, "port": topology.PORT}
FAR = {"address": "10.244.2.10", "port": CLIENT_PORT}
FLOW = {"workload": topology.WORKLOAD_IPV4, "workload_port": 8080, "remote": topology.CLIENT_IPV4, "remote_port": 1}
OWN = {"address": topology.WORKLOAD_IPV4, "interface": topology.HOST_SIDE}


class Place:
    def __init__(self, loaded: objects.Loaded) -> None:
        self.loaded = loaded
        self.servers: list[socket.socket] = []

    def serve(self, name: str, port: int, answer: bytes = b"", close: bool = False) -> None:
        """Accept connections in a namespace, say something, and keep them open."""
        with namespace.entered(name):
            server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        self.servers.append(server)
        held: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])
                    held[-1].sendall(answer)
                    if close:
                        held[-1].close()

        threading.Thread(target=accept, daemon=True).start()

    def close_servers(self) -> None:
        while self.servers:
            server = self.servers.pop()
            server.shutdown(socket.SHUT_RDWR)  # ends accept(), which would keep it open
            server.close()

    def from_client(self, *targets: dict[str, Any], duration: float = 0, timeout: float = 1) -> Probe:
        """What overlay_probe does on another node."""
        made = Probe(list(targets), timeout, duration)
        in_thread(topology.CLIENT, made.from_here)
        return made

    @contextlib.contextmanager
    def trying(self) -> Iterator[None]:
        """A flow tries the way, and then says nothing."""
        opened: list[keepalives.Connection] = []
        in_thread(topology.CLIENT, lambda: opened.append(keepalives.connect(TARGET["address"], TARGET["port"], 1)))
        with opened[0].socket:
            opened[0].send()
            yield

    def flows(self, made: Probe) -> list[dict[str, Any]]:
        return read_flows(PINS, [one["flow"] for one in made.connections])

    def forget_trials(self) -> None:
        key = bpf.map_next_key(self.loaded.maps["trials"], None, 16)
        while key:
            bpf.map_delete(self.loaded.maps["trials"], key)
            key = bpf.map_next_key(self.loaded.maps["trials"], None, 16)


def in_thread(name: str, function: Callable[[], Any]) -> None:
    """Run it in a namespace, and raise here what it raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            with namespace.entered(name):
                function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


@contextlib.contextmanager
def filtered(name: str, hook: str, rule: str) -> Iterator[None]:
    """A packet filter of the namespace's own."""
    table = f"table inet deaf {{ chain rules {{ type filter hook {hook} priority 0; {rule}\n}}\n}}\n"
    in_thread(name, lambda: subprocess.run(["nft", "-f", "-"], input=table, text=True, check=True))
    try:
        yield
    finally:
        in_thread(name, lambda: subprocess.run(["nft", "delete", "table", "inet", "deaf"], check=True))


def ip(line: str) -> None:
    topology.ip(*line.split())


def wire_ipv6() -> None:
    """What IPv6 needs to get to the workload and back, without waiting for neighbours."""
    with namespace.entered(topology.WORKLOAD):
        mac = subprocess.check_output(["ip", "-o", "link", "show", "dev", "eth0"], text=True).split("link/ether ")[1]
    ip(f"-n {topology.WORKLOAD} neigh add fe80::1 lladdr {topology.HOST_SIDE_MAC} dev eth0")
    ip(f"-n {topology.WORKLOAD} -6 route add default via fe80::1 dev eth0")
    ip(f"-n {topology.NODE} neigh add {topology.WORKLOAD_IPV6} lladdr {mac.split()[0]} dev {topology.HOST_SIDE}")


@pytest.fixture(scope="module")
def network() -> Iterator[Place]:
    with topology.network():
        topology.filter_packets(0)
        wire_ipv6()
        ip(f"-n {topology.CLIENT} addr add {FAR['address']}/32 dev eth0")
        ip(f"-n {topology.NODE} route add {FAR['address']} via {topology.CLIENT_IPV4}")
        loaded = objects.overlay(OVERLAY_REDIRECT=2)
        programs = [loaded.programs[name] for name in ("from_uplink", "from_workload", "to_workload", "to_uplink")]
        subprocess.run(["umount", "-l", PINS], stderr=subprocess.DEVNULL, check=False)  # of a run that was killed
        Path(PINS).mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "bpf", "bpf", PINS], check=True)
        try:
            for name in ("flows", "recent", "stats"):
                bpf.obj_pin(loaded.maps[name], f"{PINS}/{name}")
            topology.fill_overlay(loaded)
            loaded.write("peers", [("10.244.2.0/24", "peer")], layout.SCHEMAS)
            topology.set_mode(loaded, "on")
            with topology.attached(programs[0], programs[1], watchers=programs[2:]):
                yield Place(loaded)
        finally:
            subprocess.run(["umount", PINS], check=True)
            os.rmdir(PINS)


@pytest.fixture
def place(network: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """No way has been tried, and nobody listens."""
    monkeypatch.setattr(overlay_probe, "PIN_DIR", PINS)
    network.forget_trials()
    yield network
    topology.set_mode(network.loaded, "on")
    network.close_servers()


@pytest.mark.parametrize("address", [topology.WORKLOAD_IPV4, topology.WORKLOAD_IPV6])
@pytest.mark.parametrize("_port", range(4))
def test_the_first_keepalive_takes_the_fast_path_both_ways(place: Place, address: str, _port: int) -> None:
    """Of several ports, so that the slots of several flows are found."""
    place.serve(topology.WORKLOAD, topology.PORT)
    began = time.monotonic()
    made = place.from_client({"address": address, "port": topology.PORT})
    assert time.monotonic() - began < 0.3
    one = made.connections[0]
    assert (one["keepalives"], one["answered"], one["retransmissions"], one["closed"]) == (1, 1, 0, False)
    assert one["flow"]["workload"] == address
    flow = place.flows(made)[0]
    assert (flow["admitted"], flow["to_workload"], flow["to_uplink"]) == (True, 1, 1)
    assert flow["interface"] == topology.ifindexes()[1]


def test_directions_and_flows_are_told_apart(place: Place) -> None:
    """The second of two keepalives at once gets no answer: the other end answers one in half a second."""
    place.serve(topology.WORKLOAD, topology.PORT)
    opened: list[keepalives.Connection] = []
    in_thread(topology.CLIENT, lambda: opened.append(keepalives.connect(TARGET["address"], TARGET["port"], 1)))
    with opened[0].socket:
        opened[0].send()
        opened[0].send()
        (workload, workload_port), (remote, remote_port) = opened[0].remote, opened[0].local
    flow = {"workload": workload, "workload_port": workload_port, "remote": remote, "remote_port": remote_port}
    known, unknown = read_flows(PINS, [flow, {**flow, "remote_port": 1}])
    assert (known["admitted"], known["to_workload"], known["to_uplink"]) == (True, 2, 1)
    assert (unknown["admitted"], unknown["to_workload"], unknown["to_uplink"]) == (False, 0, 0)


def test_keepalives_of_three_seconds_are_counted_but_for_heartbeats(place: Place) -> None:
    place.serve(topology.WORKLOAD, topology.PORT)
    before = read_counters(PINS)
    made = place.from_client(TARGET, duration=3)
    time.sleep(0.3)  # the other end acknowledges the FIN, 40 ms late at most, and that is a heartbeat, too
    after = read_counters(PINS)
    grown = {label: after[label] - before.get(label, 0) for label in after}
    flow, one = place.flows(made)[0], made.connections[0]
    assert one["keepalives"] == one["answered"] == 5
    for direction, name, packets in (("uplink", "to_workload", 5), ("workload", "to_uplink", 6)):
        assert flow[name] == grown[f"{direction}.{name}"] >= 2
        assert flow[name] + grown[f"{direction}.heartbeat"] == packets


def test_a_flow_that_ends_leaves_the_way_to_the_next(place: Place) -> None:
    place.serve(topology.WORKLOAD, topology.PORT)
    assert [place.flows(place.from_client(TARGET))[0]["to_workload"] for __ in range(3)] == [1, 1, 1]


def test_a_flow_that_waits_for_another_ones_trial_gets_its_turn(place: Place) -> None:
    place.serve(topology.WORKLOAD, topology.PORT)
    with place.trying():
        hasty = place.from_client(TARGET)
        patient = place.from_client(TARGET, duration=5)
    flow = place.flows(hasty)[0]
    assert (flow["admitted"], flow["to_workload"]) == (True, 0)
    flow = place.flows(patient)[0]
    assert min(flow["to_workload"], flow["to_uplink"]) >= 1
    assert patient.connections[0]["retransmissions"] == 0


def test_mode_off_is_told_from_on(place: Place) -> None:
    place.serve(topology.WORKLOAD, topology.PORT)
    topology.set_mode(place.loaded, "off")
    made = place.from_client(TARGET)
    assert made.connections[0]["answered"] == 1
    flow = place.flows(made)[0]
    assert (flow["admitted"], flow["to_workload"], flow["to_uplink"], flow["interface"]) == (False, 0, 0, 0)


def test_answers_that_do_not_arrive_are_missed(place: Place) -> None:
    """The fast path sent them, and nobody would know."""
    place.serve(topology.WORKLOAD, topology.PORT)
    with filtered(topology.CLIENT, "input", "tcp sport 8080 tcp flags & (syn | fin | rst) == 0 drop"):
        made = place.from_client(TARGET)
    one, flow = made.connections[0], place.flows(made)[0]
    assert (one["keepalives"], one["answered"]) == (1, 0)
    assert (flow["to_workload"], flow["to_uplink"]) == (1, 1)


def test_segments_that_are_sent_again_are_counted(place: Place) -> None:
    place.serve(topology.WORKLOAD, topology.PORT)
    with filtered(topology.WORKLOAD, "input", "tcp dport 8080 tcp flags & syn == syn quota until 70 bytes drop"):
        made = place.from_client(TARGET, timeout=3)
    assert made.connections[0]["retransmissions"] == 1


def test_a_server_that_speaks_first_or_closes_at_once_minds_nothing(place: Place) -> None:
    place.serve(topology.WORKLOAD, topology.PORT, answer=b"220 ready\r\n")
    made = place.from_client(TARGET)
    assert made.connections[0]["answered"] == 1
    assert min(place.flows(made)[0][name] for name in ("to_workload", "to_uplink")) >= 1
    place.close_servers()
    place.serve(topology.WORKLOAD, topology.PORT, close=True)
    assert place.from_client(TARGET, duration=1).connections[0]["closed"]


def test_who_does_not_listen_is_named_and_who_is_not_there_is_an_error(place: Place) -> None:
    nobody = {**TARGET, "port": 9}
    place.serve(topology.WORKLOAD, topology.PORT)
    made = place.from_client(nobody, TARGET)
    assert made.told["refused"] == [f"{topology.WORKLOAD_IPV4}:9"]
    assert made.told["connected"] == [f"{topology.WORKLOAD_IPV4}:8080"]
    said = r"Cannot connect to a workload: .* no answer within 0.5 s. Compare with"
    with filtered(topology.WORKLOAD, "input", "tcp dport 8080 drop"), pytest.raises(OverlayError, match=said):
        place.from_client(TARGET, timeout=0.5)
    made = Probe([FAR], 0.5, 0)
    with filtered(topology.CLIENT, "input", "tcp dport 8080 drop"):
        assert made.from_workload(OWN)
    assert made.told["silent"] == ["10.244.2.10:8080: no answer within 0.5 s"]


def test_a_workload_connects_and_its_packets_are_counted(place: Place) -> None:
    place.serve(topology.CLIENT, CLIENT_PORT)
    before = os.readlink("/proc/thread-self/ns/net")
    made = Probe([{**FAR, "port": 9}, FAR], 1, 5)
    assert made.from_workload(OWN)
    assert os.readlink("/proc/thread-self/ns/net") == before
    one, flow = made.connections[0], made.flows[0]
    assert (made.told["refused"], made.told["connected"]) == (["10.244.2.10:9"], ["10.244.2.10:8080"])
    assert (flow["workload"], flow["remote"], flow["remote_port"]) == (OWN["address"], FAR["address"], CLIENT_PORT)
    assert (flow["admitted"], flow["to_workload"], flow["to_uplink"]) == (True, 1, 1)
    assert (one["keepalives"], one["answered"], one["retransmissions"]) == (1, 1, 0)


def test_a_translated_connection_is_not_taken_for_one_of_the_fast_path(place: Place) -> None:
    """The node masquerades what its workloads send to addresses that are no workloads."""
    place.serve(topology.CLIENT, CLIENT_PORT)
    made = Probe([{**FAR, "address": topology.CLIENT_IPV4}], 1, 0)
    assert made.from_workload(OWN)
    assert made.connections[0]["answered"] == 1
    assert [made.flows[0][name] for name in ("admitted", "to_workload", "to_uplink")] == [False, 0, 0]


def test_a_workload_that_waits_for_another_ones_trial_ends_as_soon_as_it_had_its_turn(place: Place) -> None:
    place.serve(topology.CLIENT, CLIENT_PORT)
    place.serve(topology.WORKLOAD, topology.PORT)
    made = Probe([FAR], 1, 30)
    with place.trying():
        began = time.monotonic()
        assert made.from_workload(OWN)
    assert 0.5 < time.monotonic() - began < 4
    assert min(made.flows[0][name] for name in ("to_workload", "to_uplink")) >= 1


def test_workloads_that_cannot_be_entered_are_named(place: Place) -> None:
    place.serve(topology.CLIENT, CLIENT_PORT)
    made = Probe([FAR], 1, 0)
    guest = {"address": "10.244.1.77", "interface": topology.HOST_SIDE}
    assert not made.from_workload(guest)
    assert not made.from_workload({**OWN, "interface": "lo"})
    assert not made.from_workload({**OWN, "interface": "cali9"})
    reasons = [told.partition(": ")[2] for told in made.told["not_entered"]]
    assert reasons[0] == "the network namespace behind it does not have the address"
    assert reasons[1] == "the other end of lo is in no other network namespace"
    assert reasons[2].startswith("the other end of cali9 cannot be found")
    assert made.connections == []


@pytest.mark.usefixtures("place")
def test_a_namespace_is_found_as_long_as_a_process_is_in_it() -> None:
    ip(f"-n {topology.NODE} link add cali7 type veth peer name far7")
    holder = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    while os.readlink(f"/proc/{holder.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        time.sleep(0.01)
    with open(f"/proc/{holder.pid}/ns/net", "rb"):  # keeps it when the process is gone
        ip(f"-n {topology.NODE} link set far7 netns {holder.pid}")
        assert "far7" in inside("cali7", lambda: [name for _number, name in socket.if_nameindex()])
        holder.kill()
        holder.wait()
        with pytest.raises(NotEnteredError, match="no process or mount holds the network namespace behind cali7"):
            inside("cali7", lambda: None)


@pytest.mark.usefixtures("place")
def test_maps_of_another_layout_are_not_read() -> None:
    folder = Path(f"{PINS}/old")
    folder.mkdir()
    try:
        for name, value_size in (("flows", 64), ("recent", 64), ("stats", 8)):
            kind = bpf.MAP_TYPE_LRU_HASH if name == "flows" else bpf.MAP_TYPE_ARRAY
            bpf.obj_pin(bpf.map_create(kind, 40 if name == "flows" else 4, value_size, 8), f"{folder}/{name}")
        for read in (lambda: read_flows(str(folder), [FLOW]), lambda: read_counters(str(folder))):
            with pytest.raises(OverlayError, match="Another version of the collection loaded it"):
                read()
    finally:
        for pin in folder.iterdir():
            pin.unlink()
        folder.rmdir()
