# SPDX-License-Identifier: GPL-3.0-or-later
"""The one process that stays: parent of every node's PID 1 and of every workload's server.

A node that reboots (its PID 1 ends with SIGHUP, reboot(2) in a PID namespace) loses its network namespace and is
built and started again with its file system kept. A node that is switched off or killed stays down until somebody
asks for it: a file named like the node in ``run/requests`` (see :meth:`lab.api.Node.start`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import uuid
from pathlib import Path

from . import base, leftovers, noderoot, wirings, workload_server
from .cluster import ClusterPlan, NodePlan, WorkloadPlan
from .namespace import path_of
from .paths import KEY, LOGS, PIDS, REQUESTS, STATE, marked_environment, nodes_dir

# PID 1 of a node without systemd. dash reaps whatever is orphaned to it while it waits for sshd.
_INIT_PATH = "/usr/local/sbin/lab-init"
_INIT = """#!/bin/sh
# PID 1 of a lab node: keeps the SSH server running and reaps orphans.
mkdir -p /run/sshd
while :; do
    /usr/sbin/sshd -D &
    wait $!
    sleep 0.2
done
"""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def node_dir(node: NodePlan) -> Path:
    """The folder with the node's writable layer."""
    return nodes_dir() / node.name


def _hosts(cluster: ClusterPlan) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{address} {node.name}" for node in cluster.nodes for address in (node.ipv4, node.ipv6)]
    return "\n".join(lines) + "\n"


def prepare_node(cluster: ClusterPlan, node: NodePlan) -> None:
    """Write down what the node's root is made of. Its SSH host key and machine id live as long as its layer."""
    folder = node_dir(node)
    folder.mkdir(parents=True, exist_ok=True)
    host_key = folder / "ssh_host_ed25519_key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{node.name}", "-f", str(host_key)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    public_key = KEY.with_suffix(".pub").read_text(encoding="utf-8")
    machine_id = hashlib.sha256(uuid.uuid4().bytes).hexdigest()[:32]
    spec = noderoot.RootSpec(
        lower=base.layers(cluster.base),
        upper=str(folder / "upper"),
        work=str(folder / "work"),
        mountpoint=str(folder / "root"),
        packages=str(base.packages_path()),
        hostname=node.name,
        argv=["/sbin/init"] if cluster.systemd else [_INIT_PATH],
        networks={workload.name: str(path_of(workload.name)) for workload in node.workloads},
        pid_file=str(PIDS / node.name),
        files={_INIT_PATH: (_INIT, 0o755)},
        files_once={
            "/etc/hostname": (f"{node.name}\n", 0o644),
            "/etc/hosts": (_hosts(cluster), 0o644),
            "/etc/machine-id": (f"{machine_id}\n", 0o444),
            "/etc/ssh/ssh_host_ed25519_key": (host_key.read_text(encoding="utf-8"), 0o600),
            "/etc/ssh/ssh_host_ed25519_key.pub": (Path(f"{host_key}.pub").read_text(encoding="utf-8"), 0o644),
            "/root/.ssh/authorized_keys": (public_key, 0o600),
        },
        # systemd behaves in a container only when it is told that it is in one.
        environment={"PATH": _PATH, **({"container": "lxc"} if cluster.systemd else {})},
    )
    (folder / "spec.json").write_text(spec.to_json(), encoding="utf-8")


def _cgroup(name: str) -> Path | None:
    root = leftovers.cgroup_root()
    if root is None:
        return None
    group = root / name
    group.mkdir(parents=True, exist_ok=True)
    return group


def _spawn(command: list[str], name: str) -> subprocess.Popen[bytes]:
    """Start a child in its own cgroup, its output in ``run/logs/NAME.log``."""
    group = _cgroup(name)
    if group is not None:
        # Joined before the command runs: a cgroup namespace has its root where its creator was.
        command = ["/bin/sh", "-ec", 'echo $$ > "$0"; exec "$@"', str(group / "cgroup.procs"), *command]
    with open(LOGS / f"{name}.log", "ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=marked_environment(name),
            start_new_session=True,
        )


def start_node(node: NodePlan) -> subprocess.Popen[bytes]:
    """Start the node's PID 1 in fresh namespaces. The child returned ends with the signal that ended PID 1."""
    enter = ["nsenter", f"--net={path_of(node.name)}"]
    unshare = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--kill-child"]
    unshare += ["--propagation", "private"]
    script = [sys.executable, "-I", "-S", noderoot.__file__, str(node_dir(node) / "spec.json")]
    return _spawn([*enter, *unshare, *script], node.name)


def start_workload(workload: WorkloadPlan) -> subprocess.Popen[bytes]:
    """Start the workload's server in its network namespace."""
    enter = ["nsenter", f"--net={path_of(workload.name)}"]
    child = _spawn([*enter, sys.executable, "-I", "-S", workload_server.__file__, workload.name], workload.name)
    leftovers.record_pid(workload.name, child.pid)
    return child


class Supervisor:
    """Starts the cluster and keeps it in the state that its nodes' own actions ask for."""

    def __init__(self, cluster: ClusterPlan) -> None:
        self.cluster = cluster
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.workloads: dict[str, subprocess.Popen[bytes]] = {}
        self.wired = wirings.named(cluster.wiring)
        self.helpers: dict[str, dict[str, subprocess.Popen[bytes]]] = {}

    def start(self, node: NodePlan) -> None:
        for workload in node.workloads:
            self.workloads[workload.name] = start_workload(workload)
        self.nodes[node.name] = start_node(node)
        enter = ["nsenter", f"--net={path_of(node.name)}"]
        commands = self.wired.processes(self.cluster, node)
        self.helpers[node.name] = {name: _spawn([*enter, *command], name) for name, command in commands.items()}

    def stop(self, node: NodePlan) -> None:
        """Take the node's power: processes, network namespaces, nothing else."""
        machine = self.nodes.pop(node.name, None)
        if machine is not None and machine.poll() is None:
            # PID 1 first: its parent then ends when everything inside is gone and the root is free for the next start.
            _kill_recorded(node.name)
            if not _ended(machine, 2.0):
                machine.kill()
                machine.wait()
        helpers = self.helpers.pop(node.name, {})
        for helper in helpers.values():
            helper.kill()
            helper.wait()
        for workload in node.workloads:
            child = self.workloads.pop(workload.name, None)
            if child is not None:
                child.kill()
                child.wait()
        from .network import destroy_node  # imported late: pyroute2 costs every lab half a second otherwise

        destroy_node(node)
        for name in [node.name, *helpers, *(workload.name for workload in node.workloads)]:
            (PIDS / name).unlink(missing_ok=True)
            leftovers.remove_cgroup(name)

    def restart(self, node: NodePlan) -> None:
        from .network import build_node

        self.stop(node)
        build_node(self.cluster, node)
        self.start(node)

    def look_after(self, node: NodePlan) -> None:
        """React to the end of a node and to requests for it."""
        request = REQUESTS / node.name
        if request.exists():
            wanted = request.read_text(encoding="ascii").strip()
            _log(f"{node.name}: asked to {wanted}")
            if wanted == "stop":
                self.stop(node)
            else:
                self.restart(node)
            request.unlink()
            return
        child = self.nodes.get(node.name)
        if child is None or child.poll() is None:
            return
        _log(f"{node.name}: PID 1 ended with {child.returncode}")
        if child.returncode == -signal.SIGHUP:
            self.restart(node)
        else:
            self.stop(node)

    def run(self) -> None:
        """Start everything, then watch for good."""
        for node in self.cluster.nodes:
            self.start(node)
        while True:
            for node in self.cluster.nodes:
                try:
                    self.look_after(node)
                except Exception:
                    # One node that cannot be built again must not take its neighbours' supervisor away.
                    _log(f"{node.name}: {traceback.format_exc()}")
                    (REQUESTS / node.name).unlink(missing_ok=True)
            time.sleep(0.1)


def _kill_recorded(name: str) -> None:
    with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
        os.kill(int((PIDS / name).read_text(encoding="ascii")), signal.SIGKILL)


def _ended(child: subprocess.Popen[bytes], timeout: float) -> bool:
    try:
        child.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    return True


def _log(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def main() -> None:
    """Entry of ``python -m lab.supervisor``: the plan is in ``run/lab.json``."""
    cluster = ClusterPlan.from_dict(json.loads(STATE.read_text(encoding="utf-8"))["plan"])
    group = _cgroup("supervisor")
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    Supervisor(cluster).run()


if __name__ == "__main__":
    main()
