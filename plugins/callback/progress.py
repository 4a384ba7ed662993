# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person sees who watches a roll-out over many nodes: batch, step and counts."""

from __future__ import annotations

DOCUMENTATION = """
name: progress
type: stdout
version_added: 1.0.0
short_description: Shows batch, step and number of nodes instead of every result
description:
  - One line for each step of a play, with the batch, how many nodes are done, how many of them were changed, and how
    long it took. On a terminal the line of the present step is kept up to date.
  - Failures, unreachable nodes, warnings and diffs are shown whole, with the node and the step. So are the messages of
    C(debug) and what an C(assert) says.
  - With C(-v) every result is printed as well.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
notes:
  - 'Set it with C(stdout_callback = ebpf.overlay.progress) in the section C(defaults) of F(ansible.cfg), or in the
    environment: C(ANSIBLE_STDOUT_CALLBACK=ebpf.overlay.progress).'
"""

import os
import sys
import time
from typing import Any

from ansible import constants, context
from ansible.playbook.block import Block
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback.default import CallbackModule as Default

from ansible_collections.ebpf.overlay.plugins.plugin_utils import _steps

ROLES = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "roles")
ASSERTED = "All assertions passed"
# Ansible's own check of a role's variables: a step only where it fails.
VALIDATION = "ansible.builtin.validate_argument_spec"


class CallbackModule(Default):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "ebpf.overlay.progress"

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()
        self._play: Any = None
        self._name = ""
        self._batch = 0
        self._scope = ""
        self._hosts: set[str] = set()
        self._lost: set[str] = set()
        self._told: set[str] = set()
        self._steps: dict[str, _steps.Step] = {}
        self._place = _steps.Place([])
        self._trouble: dict[str, str] = {}
        self._live = sys.stdout.isatty() and not constants.ANSIBLE_NOCOLOR
        self._open_line = False

    # -- plays and steps ----------------------------------------------------------------------------------------------

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._finish(list(self._steps))
        inventory = play.get_variable_manager()._inventory
        hosts = {host.get_name() for host in inventory.get_hosts(play.hosts, order=play.order)} - self._lost
        everyone = inventory.get_hosts(play.hosts, ignore_restrictions=True, order=play.order)
        sizes = _steps.batches(len(everyone), play.serial or [])
        # Each batch of a play starts it anew, as a copy; the tasks stay the same ones.
        same = self._play is not None and self._play._uuid == play._uuid and len(sizes) > 1
        self._batch = self._batch + 1 if same else 1
        self._play, self._hosts = play, hosts
        if not same:
            self._say(f"{play.get_name().strip()}{' (dry run)' if play.check_mode else ''}", constants.COLOR_HIGHLIGHT)
        batch = f"batch {self._batch} of {max(len(sizes), self._batch)} · " if len(sizes) > 1 else ""
        self._scope = f"{batch}{_steps.nodes(len(hosts))}"
        self._place = _steps.Place(self._foreseen(play))

    def _foreseen(self, play: Any) -> list[str]:
        roles = {f"ebpf.overlay.{name}": os.path.join(ROLES, name) for name in os.listdir(ROLES)}
        return [
            name
            for block in play.compile()
            for task in _flat(block)
            if task.action != VALIDATION
            for name in _steps.listed([_written(task)], os.path.dirname(task.get_path().rsplit(":", 1)[0]), roles)
        ]

    def _task_start(self, task: Any, prefix: str | None = None) -> None:
        if task._uuid in self._steps or isinstance(task, TaskInclude) or task.action in constants._ACTION_META:
            return
        if not self._free:
            self._finish(list(self._steps))
        name = _plain(task)
        step = _steps.Step(f"{prefix} {name}" if prefix == "RUNNING HANDLER" else name, time.monotonic())
        step.validates = task.action == VALIDATION
        step.number, step.of = self._place.number(name), len(self._place.steps)
        self._steps[task._uuid] = step

    @property
    def _free(self) -> bool:
        return self._play is not None and self._play.strategy.rpartition(".")[2] in ("free", "host_pinned")

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        if step := self._steps.get(task._uuid):
            step.started.add(host.get_name())
            self._refresh()

    def _note(self, result: Any, outcome: str) -> None:
        step = self._steps.get(result.task._uuid)
        if step is None:
            return
        host = result.host.get_name()
        getattr(step, outcome).add(host)
        if result.result.get("changed"):
            step.changed.add(host)
        self._refresh()
        if self._free and step.done >= self._hosts - self._lost:
            self._finish([result.task._uuid])

    def _finish(self, which: list[str]) -> None:
        """Print the lines of steps that are over."""
        for uuid in which:
            step = self._steps.pop(uuid)
            quiet = step.dull or (step.validates and not step.failed)
            if quiet and self._display.verbosity == 0:
                continue
            bad = step.failed or step.unreachable
            color = constants.COLOR_ERROR if bad else constants.COLOR_CHANGED if step.changed else constants.COLOR_OK
            self._say(step.line(self._scope, time.monotonic(), self._check), color)
        self._close_line()

    @property
    def _check(self) -> bool:
        return bool(self._play and self._play.check_mode) or bool(context.CLIARGS.get("check"))

    # -- the terminal -------------------------------------------------------------------------------------------------

    def _say(self, text: str, color: str | None = None) -> None:
        self._close_line()
        self._display.display(text, color=color)

    def _refresh(self) -> None:
        if not self._live or not self._steps:
            return
        step = list(self._steps.values())[-1]
        width = max(os.get_terminal_size(sys.stdout.fileno()).columns - 1, 20)
        sys.stdout.write("\r\x1b[K" + step.line(self._scope, time.monotonic(), self._check)[:width])
        sys.stdout.flush()
        self._open_line = True

    def _close_line(self) -> None:
        if self._open_line:
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()
            self._open_line = False

    # -- results ------------------------------------------------------------------------------------------------------

    def v2_runner_on_ok(self, result: Any) -> None:
        self._close_line()
        self._handle_warnings_and_exception(result)
        if isinstance(result.task, TaskInclude):
            return
        action = result.task.action.rpartition(".")[2]
        if action in ("debug", "assert") and not result.task.loop:
            self._tell(result, str(action))
        elif self._run_is_verbose(result):
            self._dump(result)
        self._note(result, "ok")

    def _tell(self, result: Any, action: str) -> None:
        message = result.result.get("msg", ASSERTED if action == "assert" else None)
        if message == ASSERTED:
            return
        if message is None:
            self._dump(result)
            return
        lines = [str(line) for line in message] if isinstance(message, (list, tuple)) else str(message).splitlines()
        one = action == "debug" and result.task.run_once
        for line in lines:
            self._say(f"  {line}" if one else f"  {self.host_label(result)}: {line}")

    def _dump(self, result: Any) -> None:
        self._clean_results(result.result, result.task.action)
        self._say(f"  {self.host_label(result)} · {_plain(result.task)} => {self._dump_results(result.result)}")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        rescued = _in_rescued_block(result.task)
        if not ignore_errors and not rescued:
            self._lost.add(result.host.get_name())
        self._wrong("FAILED", result, "ignored" if ignore_errors else "handled by the play" if rescued else "")
        self._note(result, "failed")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        if not result.task.ignore_unreachable:
            self._lost.add(result.host.get_name())
        self._wrong("UNREACHABLE", result, "the play goes on" if result.task.ignore_unreachable else "")
        self._note(result, "unreachable")

    def _wrong(self, word: str, result: Any, remark: str) -> None:
        """Tell a failure whole, and once for each task where that task is written."""
        self._close_line()
        self._handle_warnings(result.result)
        if self._display.verbosity > 0:
            self._handle_exception(result.result)
        name = _plain(result.task)
        first, *rest = _steps.reason(result.result).splitlines() or [""]
        if word == "FAILED" and result.task._uuid not in self._told and result.task.get_path():
            self._told.add(result.task._uuid)
            rest.append(f"in {result.task.get_path()}")
        remark = f" ({remark})" if remark else ""
        stderr = self.get_option("display_failed_stderr")
        color = constants.COLOR_UNREACHABLE if word == "UNREACHABLE" else constants.COLOR_ERROR
        self._display.display(f"{word} {self.host_label(result)} · {name}{remark}: {first}", color=color, stderr=stderr)
        for line in rest:
            self._display.display(f"    {line}", color=color, stderr=stderr)
        self._trouble[result.host.get_name()] = f"{name}: {first}"
        if self._display.verbosity > 0:
            self._dump(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._close_line()
        self._handle_warnings_and_exception(result)
        if self._run_is_verbose(result):
            self._dump(result)
        self._note(result, "skipped")

    # What items say is told with the result of the whole loop.
    def v2_runner_item_on_ok(self, result: Any) -> None:
        self._close_line()
        self._handle_warnings_and_exception(result)
        if result.task.action.rpartition(".")[2] == "debug":
            self._tell(result, "debug")
        elif self._run_is_verbose(result):
            self._dump(result)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        self._close_line()
        self._handle_warnings(result.result)

    def v2_runner_item_on_skipped(self, result: Any) -> None:
        self._close_line()
        self._handle_warnings_and_exception(result)

    def v2_on_file_diff(self, result: Any) -> None:
        results = result.result.get("results") if result.task.loop else None
        for one in results or [result.result]:
            if one.get("changed") and one.get("diff") and (text := self._get_diff(one["diff"])):
                self._say(f"  {self.host_label(result)} · {_plain(result.task)}")
                self._display.display(text)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        if self._display.verbosity > 0:
            self._close_line()
            super().v2_playbook_on_include(included_file)

    def v2_playbook_on_no_hosts_matched(self) -> None:
        self._say("There is no host for this play.", constants.COLOR_SKIP)

    def v2_playbook_on_no_hosts_remaining(self) -> None:
        self._finish(list(self._steps))
        self._say("No host is left: the run ends here.", constants.COLOR_ERROR)

    def v2_runner_retry(self, result: Any) -> None:
        self._close_line()
        super().v2_runner_retry(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._finish(list(self._steps))
        super().v2_playbook_on_stats(stats)  # what other tools read; the lines for people come last
        rows = [(host, stats.summarize(host)) for host in sorted(stats.processed)]
        first, *rest = _steps.recap(rows, self._trouble, self._check)
        self._say(f"Recap: {first} · {time.monotonic() - self._began:.0f} s", constants.COLOR_HIGHLIGHT)
        for line in rest:
            self._display.display(line)


def _plain(task: Any) -> str:
    """The task's name without that of its role."""
    return str(task.get_name()).rpartition(" : ")[2].strip()


def _written(task: Any) -> dict[str, Any]:
    """A loaded task as it is in its file, as far as steps are concerned."""
    arguments = task.args.get("_raw_params") or dict(task.args)
    return {"name": _plain(task), task.action: arguments}


def _flat(part: Any) -> list[Any]:
    """The tasks of a block, those of blocks within it too, without what only runs after a failure."""
    if not isinstance(part, Block):
        return [part]
    return [task for inner in (*part.block, *part.always) for task in _flat(inner)]


def _in_rescued_block(task: Any) -> bool:
    """Whether a failure of this task leads to a ``rescue``."""
    child, parent = task, task._parent
    while parent is not None:
        if isinstance(parent, Block) and parent.rescue and any(child._uuid == one._uuid for one in parent.block):
            return True
        child, parent = parent, parent._parent
    return False
