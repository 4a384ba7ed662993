# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: ``lab up``, ``lab down``, ``lab status``, ``lab exec``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from . import namespace, paths, wirings
from .cluster import FABRIC, ClusterPlan, NodePlan
from .paths import LabError


def _announce(text: str) -> None:
    print(text, flush=True)


def _write_keys_and_state(cluster: ClusterPlan) -> None:
    for folder in (paths.RUN_DIR, paths.PIDS, paths.LOGS, paths.REQUESTS):
        folder.mkdir(parents=True, exist_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ebpf.overlay lab", "-f", str(paths.KEY)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    state = {"plan": cluster.as_dict(), "ready": False, "cache": str(paths.cache_dir())}
    paths.write_atomically(paths.STATE, json.dumps(state, indent=1))


def _start_supervisor() -> None:
    environment = paths.marked_environment("supervisor")
    environment["PYTHONPATH"] = str(paths.LAB_DIR.parent)
    with open(paths.LOGS / "supervisor.log", "ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "lab.supervisor"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd="/",
            start_new_session=True,
        )


def ssh_answers(node: NodePlan, timeout: float = 0.5) -> bool:
    """Does the node's SSH server greet a client on the fabric?"""
    try:
        with namespace.connect(FABRIC, node.ipv4, 22, timeout=timeout) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _wait_for_nodes(cluster: ClusterPlan, timeout: float) -> None:
    waiting = list(cluster.nodes)
    deadline = time.monotonic() + timeout
    while waiting:
        waiting = [node for node in waiting if not ssh_answers(node)]
        if waiting and time.monotonic() > deadline:
            name = waiting[0].name
            logs = paths.tail(paths.LOGS / f"{name}.log") or paths.tail(paths.LOGS / "supervisor.log")
            names = ", ".join(node.name for node in waiting)
            raise LabError(f"no SSH server answers on {names} after {timeout:.0f} s; the end of {name}'s log:\n{logs}")
        time.sleep(0.03)


def _wait_for_workloads(cluster: ClusterPlan, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    for node in cluster.nodes:
        for workload in node.workloads:
            while True:
                try:
                    namespace.connect(workload.name, "127.0.0.1", 8080, timeout=1.0).close()
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise LabError(f"the server of {workload.name} does not answer: {error}") from error
                    time.sleep(0.03)


def _wait_for_wiring(cluster: ClusterPlan, timeout: float) -> None:
    wired = wirings.named(cluster.wiring)
    deadline = time.monotonic() + timeout
    while awaited := wired.awaited(cluster):
        if time.monotonic() > deadline:
            names = ["supervisor", *(name for node in cluster.nodes for name in wired.processes(cluster, node))]
            logs = "\n".join(filter(None, (paths.tail(paths.LOGS / f"{name}.log", 5) for name in names)))
            raise LabError(f"the wiring {cluster.wiring} is not done after {timeout:.0f} s: it lacks {awaited}\n{logs}")
        time.sleep(0.1)


def up(cluster: ClusterPlan) -> None:
    """Build a fresh lab, whatever was there before."""
    paths.require_root()
    wired = wirings.named(cluster.wiring)
    paths.require_tools({**paths.TOOLS, **wired.tools})
    from . import base, inventory, leftovers, network

    with paths.lock():
        found = leftovers.sweep()
        if found:
            _announce(f"removed what an earlier lab left: {', '.join(found)}")
        base.ensure(cluster.base)
        started = time.monotonic()
        try:
            _write_keys_and_state(cluster)
            from .supervisor import prepare_node

            network.build_fabric(cluster)
            for node in cluster.nodes:
                network.build_node(cluster, node)
                prepare_node(cluster, node)
            _start_supervisor()
            _wait_for_nodes(cluster, timeout=20.0 + 4.0 * cluster.node_count)
            _wait_for_workloads(cluster, timeout=20.0)
            _wait_for_wiring(cluster, timeout=30.0)
            inventory.write(cluster)
            state = json.loads(paths.STATE.read_text(encoding="utf-8"))
            paths.write_atomically(paths.STATE, json.dumps({**state, "ready": True}, indent=1))
        except BaseException as error:
            # Keep what explains the failure: sweep() removes the run folder with the logs.
            log = paths.tail(paths.LOGS / "supervisor.log")
            leftovers.sweep()
            if isinstance(error, (KeyboardInterrupt, LabError)) or not log:
                raise
            raise LabError(f"building the lab failed: {error}\n{log}") from error
        seconds = time.monotonic() - started
    _announce(
        f"lab up: {cluster.node_count} nodes with {cluster.workload_count} workloads each, base {cluster.base}, "
        f"wiring {cluster.wiring}, "
        f"in {seconds:.1f} s\ninventory: {paths.INVENTORY}"
    )


def down() -> None:
    """Remove every trace of the lab."""
    paths.require_root()
    from . import leftovers

    with paths.lock():
        found = leftovers.sweep()
    _announce(f"lab down: removed {', '.join(found)}" if found else "lab down: there was none")


def status(as_json: bool) -> int:
    """Print what runs. Returns 0 when a whole lab is up, 3 when none is, 1 when something of it is missing."""
    paths.require_root()
    from .api import Lab

    try:
        lab = Lab.load()
    except LabError as error:
        left = namespace.ours()
        _announce(f"no lab is up{f' (but there are leftovers: {len(left)} namespaces)' if left else ''}: {error}")
        return 3
    rows = lab.status()
    if as_json:
        print(json.dumps({"plan": lab.cluster.as_dict(), "endpoints": rows}, indent=1))
    else:
        columns = ("name", "state", "pid", "ipv4", "ipv6", "interface")
        table = [columns, *(tuple(str(row[column]) for column in columns) for row in rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
        for line in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        print(f"inventory: {paths.INVENTORY}")
    return 0 if all(row["state"] == "up" for row in rows) else 1


def execute(name: str, command: Sequence[str]) -> int:
    """Replace this process by a command in a node, a workload or the fabric."""
    paths.require_root()
    from .api import Lab

    argv = Lab.load().endpoint(name).command(list(command) or ["/bin/bash"])
    os.execvp(argv[0], argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab", description=__doc__, epilog="OVERLAY_LAB=NAME: another lab, beside others"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("up", help="build a fresh lab (removes an older one first)")
    build.add_argument("--nodes", type=int, default=3, metavar="N")
    build.add_argument("--workloads", type=int, default=2, metavar="M", help="workloads per node")
    build.add_argument("--base", choices=("fresh", "ready"), default="fresh", help="ready: with the role's packages")
    build.add_argument("--systemd", action="store_true", help="systemd is PID 1 of the nodes")
    build.add_argument("--wiring", default="direct", metavar="NAME", help=", ".join(wirings.NAMES))
    commands.add_parser("down", help="remove every trace of the lab")
    show = commands.add_parser("status", help="what runs")
    show.add_argument("--json", action="store_true")
    run = commands.add_parser("exec", help="run a command in ovl-n1, ovl-n1-w1, ovl-fabric, …")
    run.add_argument("name")
    run.add_argument("argv", nargs=argparse.REMAINDER)
    return parser


def main(argv: Sequence[str]) -> int:
    """Returns the exit status; every foreseeable failure is one message on standard error and status 2."""
    arguments = _parser().parse_args(argv)
    try:
        paths.require_name()
        if arguments.command == "up":
            try:
                cluster = ClusterPlan(
                    arguments.nodes, arguments.workloads, arguments.base, arguments.systemd, arguments.wiring
                )
            except ValueError as error:
                raise LabError(str(error)) from error
            up(cluster)
        elif arguments.command == "down":
            down()
        elif arguments.command == "status":
            return status(arguments.json)
        else:
            return execute(arguments.name, arguments.argv)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lab: interrupted; everything was removed again", file=sys.stderr)
        return 130
    return 0
