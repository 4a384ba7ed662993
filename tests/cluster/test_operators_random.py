# SPDX-License-Identifier: GPL-3.0-or-later
"""Random operators: whatever people do one after the other, reports are true, and one run makes all right again."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleet import play
from fleet.datapath import AT_ONCE, Datapath, full
from fleet.generation import history, settled
from lab.api import Lab, Node
from lab.paths import INVENTORY, PREFIX

SITE, ROLLBACK, DISABLE = "site.yml", "rollback.yml", "playbooks/disable.yml"
TIMES = {**AT_ONCE, "overlay_lease": 45, "overlay_apply_timeout": 60}
SEQUENCES, LENGTH = full(200, 3), full(6, 3)


class Operators:
    """A lab, and what the last report said of each node."""

    def __init__(self, lab: Lab, folder: Path, chance: random.Random) -> None:
        self.lab, self.folder, self.chance = lab, folder, chance
        self.down: set[int] = set()

    def up(self) -> list[Node]:
        return [node for number, node in self.lab.nodes.items() if number not in self.down]

    def any(self) -> Node:
        return self.chance.choice(self.up())

    def variables(self, *ports: int, **more: Any) -> dict[str, Any]:
        wanted = [8080, *ports]
        return {**TIMES, "overlay_services": [{"port": port} for port in wanted], **more}

    def check(self, done: play.Run) -> None:
        """What the report says of a node is so; a run that reports trouble does not end with 0."""
        settled_nodes = self.up()
        told = [result for result in done.results if result.task.startswith("Tell w")]
        for line in told[-1].result["msg"] if told else ():
            name, __, text = line.partition(": ")
            node = next((node for node in settled_nodes if node.name == name), None)
            if node is None:
                continue
            assert not ("FAILED" in text and done.code == 0), done.output
            if "now: generation " in text:
                # Another run's attempt that waited when the report was made may be confirmed by now.
                numbers = re.findall(r"now: generation (\d+)|\(generation (\d+)\) waits for confirmation", text)
                assert history(node)["number"] in {int(now or waits) for now, waits in numbers}, done.output
            if "switched off" in text and (control := Datapath(node).control):
                assert control.mode == "off", done.output

    # -- what people do -----------------------------------------------------------------------------------------------

    def site(self) -> None:
        self.check(play.playbook(SITE, variables=self.variables()))

    def other_service(self) -> None:
        self.check(play.playbook(SITE, variables=self.variables(self.chance.choice((7070, 9090)))))

    def failing(self) -> None:
        probe = self.folder / "probe.yml"
        probe.write_text(f"- name: Fail\n  ansible.builtin.assert: {{that: inventory_hostname != '{PREFIX}n2'}}\n")
        ports = self.chance.choice((6060, 99999))
        self.check(play.playbook(SITE, variables=self.variables(ports, overlay_probe_tasks=str(probe))))

    def limit(self) -> None:
        keep = {"overlay_unreachable_policy": "keep"}
        self.check(play.playbook(SITE, "--limit", self.any().name, variables=self.variables(5050, **keep)))

    def rollback(self) -> None:
        self.check(play.playbook(ROLLBACK))

    def disable(self) -> None:
        play.playbook(DISABLE)
        for node in self.up():
            control = Datapath(node).control
            assert control is None or control.mode == "off"

    def killed(self) -> None:
        command = [play.BIN / "ansible-playbook", "-i", INVENTORY, SITE, "-e", "overlay_lease=20"]
        command += ["-e", "overlay_apply_timeout=40", "-e", 'overlay_services=[{"port":8080},{"port":4040}]']
        process = subprocess.Popen(
            list(map(str, command)), cwd=play.ROOT, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": ""},
        )  # fmt: skip
        try:
            process.wait(self.chance.uniform(2, 12))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def two_at_once(self) -> None:
        begun: list[play.Run] = []

        def follow(task: str) -> None:
            if task == "Build and load the datapath" and not begun:
                begun.append(play.playbook(SITE, variables=self.variables(3030)))

        first = play.playbook(SITE, variables=self.variables(2020), begun=follow)
        self.check(first)
        for second in begun:
            assert second.code != 0 or first.code != 0, "both say that they have the nodes"

    def node_down(self) -> None:
        if not self.down:
            number = self.chance.choice(list(self.lab.nodes))
            self.lab.nodes[number].stop()
            self.down.add(number)

    def node_up(self) -> None:
        for number in self.down:
            self.lab.nodes[number].start()
        self.down.clear()

    def reboot(self) -> None:
        node = self.any()
        node.stop()
        node.start()

    def mode(self) -> None:
        datapath = Datapath(self.any())
        if datapath.control:
            datapath.mode(self.chance.choice(("on", "off")), force=True)


DEEDS: tuple[Callable[[Operators], None], ...] = (
    Operators.site, Operators.other_service, Operators.failing, Operators.limit, Operators.rollback,
    Operators.disable, Operators.killed, Operators.two_at_once, Operators.node_down, Operators.node_up,
    Operators.reboot, Operators.mode,
)  # fmt: skip


@pytest.fixture(scope="module")
def lab(ready_lab: Lab) -> Lab:
    return ready_lab


@pytest.mark.parametrize("number", range(SEQUENCES))
def test_random_operators_are_told_the_truth_and_one_run_makes_all_right(lab: Lab, tmp_path: Path, number: int) -> None:
    seed = int(os.environ.get("OVERLAY_SEED", random.randrange(1 << 32))) + number * ("OVERLAY_SEED" in os.environ)
    operators = Operators(lab, tmp_path, random.Random(seed))
    deeds = operators.chance.choices(DEEDS, k=LENGTH)
    print(f"seed {seed}: {', '.join(deed.__name__ for deed in deeds)}")
    try:
        for deed in deeds:
            deed(operators)
    finally:
        operators.node_up()
    settled(lab, 240)
    enable = operators.variables(overlay_enable=True)
    done = play.playbook(SITE, variables=enable).succeeded()
    operators.check(done)
    assert {Datapath(node).control.mode for node in lab.nodes.values()} == {"on"}
    assert play.playbook(SITE, variables=operators.variables()).succeeded().changes == set()
