# SPDX-License-Identifier: GPL-3.0-or-later
"""Up, down, and everything that can go wrong in between: the lab leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import leftovers, namespace, paths
from lab.api import Lab, wait_until
from lab.cluster import ClusterPlan
from lab.paths import PREFIX
from lab.testing import LAUNCHER, NOTHING, answers, eventually_http, run_lab, traces


@pytest.fixture
def no_lab() -> Iterator[None]:
    run_lab("down")
    yield
    run_lab("down")


@pytest.mark.usefixtures("no_lab")
class TestLife:
    def test_up_is_quick_and_repeatable_and_down_leaves_nothing(self) -> None:
        before = traces()
        assert before == NOTHING
        machine = _machine_state()
        run_lab("up", "--nodes", "1", "--workloads", "0")  # whatever has to be cached is cached now
        started = time.monotonic()
        done = run_lab("up", "--nodes", "3", "--workloads", "2")
        assert time.monotonic() - started < 10.0
        assert "removed what an earlier lab left" in done.stdout
        assert Lab.load().cluster.node_count == 3
        assert _machine_state() == machine
        assert traces()["namespaces"] == sorted(ClusterPlan(3, 2).namespaces())
        run_lab("down")
        assert traces() == NOTHING
        assert _machine_state() == machine
        assert "there was none" in run_lab("down").stdout
        assert run_lab("status", check=False).returncode == 3

    def test_the_ready_base_has_the_role_s_packages(self) -> None:
        run_lab("up", "--nodes", "1", "--workloads", "1", "--base", "ready")
        node = Lab.load().nodes[1]
        assert node.run(["python3", "-c", "import bcc, pyroute2"]).returncode == 0
        assert node.run(["test", "-e", "/usr/include/linux/bpf.h"]).returncode == 0

    def test_systemd_as_pid_1(self) -> None:
        run_lab("up", "--nodes", "1", "--workloads", "1", "--systemd")
        lab = Lab.load()
        node = lab.nodes[1]
        assert node.run(["cat", "/proc/1/comm"]).stdout == "systemd\n"
        assert node.run(["systemctl", "is-active", "ssh"]).stdout == "active\n"
        assert node.run(["systemctl", "is-system-running", "--wait"], check=False).stdout == "running\n"
        pid = node.pid
        node.run(["systemctl", "reboot"], check=False)
        wait_until(lambda: node.pid not in (None, pid) and answers(node), 30.0, f"{PREFIX}n1 is back")
        assert eventually_http(lab, node) == f"{PREFIX}n1-w1"

    @pytest.mark.parametrize("delay", [0.2, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5, 2.0])
    def test_kill_during_up_is_cleaned_up(self, delay: float) -> None:
        _killed_up(delay)
        run_lab("down")
        assert traces() == NOTHING

    def test_up_after_a_killed_up(self) -> None:
        _killed_up(1.0)
        run_lab("up", "--nodes", "2", "--workloads", "1")
        assert run_lab("status").returncode == 0

    def test_half_a_lab_without_any_record_is_found_by_its_names(self) -> None:
        subprocess.run(["ip", "netns", "add", f"{PREFIX}n2"], check=True)
        subprocess.run(["ip", "netns", "add", f"{PREFIX}n2-w1"], check=True)
        paths.NETNS_DIR.joinpath(f"{PREFIX}n3").touch()  # a name without a namespace: killed between the two
        paths.nodes_dir().joinpath(f"{PREFIX}n2", "upper").mkdir(parents=True)
        orphan = subprocess.Popen(["ip", "netns", "exec", f"{PREFIX}n2", "sleep", "600"])
        run_lab("down")
        assert orphan.wait(timeout=5) == -signal.SIGKILL
        assert traces() == NOTHING

    def test_a_killed_supervisor_leaves_nothing_after_down(self) -> None:
        run_lab("up", "--nodes", "1", "--workloads", "1")
        lab = Lab.load()
        for pid in leftovers.processes():
            if b"lab.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        for name in namespace.ours():  # and somebody removed the names
            subprocess.run(["ip", "netns", "del", name], check=True)
        assert lab.nodes[1].pid is not None
        run_lab("down")
        assert traces() == NOTHING

    def test_another_lab_stands_beside_it(self) -> None:
        """Both have the same addresses; neither sees the other's, in any way in which one is looked for."""
        run_lab("up", "--nodes", "1", "--workloads", "1")
        ours = traces()
        try:
            run_lab("up", "--nodes", "2", "--workloads", "1", OVERLAY_LAB="other")
            told = run_lab("exec", "ovl-other-n2-w1", "cat", "/proc/sys/net/ipv4/ip_forward", OVERLAY_LAB="other")
            assert told.stdout == "0\n"
            assert "ovl-other-n2-w1" in run_lab("status", OVERLAY_LAB="other").stdout
            assert traces() == ours
            run_lab("up", "--nodes", "1", "--workloads", "1")
            assert run_lab("status", OVERLAY_LAB="other").returncode == 0
        finally:
            run_lab("down", OVERLAY_LAB="other")
        assert run_lab("status").returncode == 0
        assert "there was none" in run_lab("down", OVERLAY_LAB="other").stdout

    def test_a_name_that_no_lab_can_have(self) -> None:
        done = run_lab("up", check=False, OVERLAY_LAB="../x")
        assert (done.returncode, done.stderr) == (
            2,
            "lab: OVERLAY_LAB=../x cannot name a lab: up to eight small letters and digits can\n",
        )
        assert traces() == NOTHING

    def test_what_is_not_ours_survives(self) -> None:
        subprocess.run(["ip", "netns", "add", "ovl-xlab-other"], check=True)
        other = subprocess.Popen(["ip", "netns", "exec", "ovl-xlab-other", "sleep", "600"])
        try:
            run_lab("up", "--nodes", "1", "--workloads", "1")
            run_lab("down")
            assert other.poll() is None
            assert namespace.path_of("ovl-xlab-other").exists()
        finally:
            other.kill()
            other.wait()
            subprocess.run(["ip", "netns", "del", "ovl-xlab-other"], check=True)


def _killed_up(delay: float) -> None:
    environment = {**os.environ, "OVERLAY_PYTHON": sys.executable}
    process = subprocess.Popen([LAUNCHER, "up"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(delay)
    process.kill()
    process.wait()


def _machine_state() -> dict[str, object]:
    """What a lab must not touch: the machine's own interfaces, routes, packet filter, forwarding."""

    def output(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return {
        "links": sorted(os.listdir("/sys/class/net")),
        "routes": output("ip", "route", "show", "table", "all"),
        "rules": output("nft", "-s", "list", "ruleset"),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "hostname": output("hostname"),
    }
