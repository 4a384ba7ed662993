# SPDX-License-Identifier: GPL-3.0-or-later
"""A host for tests of playbooks that need no SSH: namespaces of this machine's own root file system."""

from __future__ import annotations

import subprocess
from typing import Any


class Host:
    """Network and mount namespaces of their own, without a name: they end with the process that holds them."""

    def __init__(self) -> None:
        # cat ends when its standard input does, however this process ends.
        command = ["unshare", "--net", "--mount", "--propagation", "private", "cat"]
        self.holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.holder.stdin
        assert self.holder.stdout
        self.holder.stdin.write("there\n")
        self.holder.stdin.flush()
        assert self.holder.stdout.readline() == "there\n"
        self.pid = str(self.holder.pid)
        # A new sysfs shows the interfaces of this network namespace, and has no bpffs on it yet.
        self.shell("while umount /sys/fs/bpf 2>/dev/null; do :; done")
        self.shell("mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run; ip link set lo up")

    def enter(self, *command: str) -> list[str]:
        return ["nsenter", "--target", self.pid, "--net", "--mount", "--", *command]

    def run(self, *command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.enter(*command), check=check, text=True, capture_output=True, **options)

    def shell(self, script: str) -> str:
        return self.run("sh", "-euc", script).stdout

    def end(self) -> None:
        self.holder.communicate()
