#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Begin, confirm and take back what a node is told to be."""

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_generation
version_added: "1.0.0"
short_description: Keep the generations of an overlay node, and go back to one of them
description:
  - A generation is what a node was told to be, an ordered list of calls of modules of this collection. It is kept on
    the node below C(/var/lib/ebpf-overlay) with the code that makes these calls, so that the node can go back to it
    without the controller.
  - A roll-out begins an attempt, makes the calls, and confirms the attempt. Until then a process on the node watches
    it, and takes the node back to the generation that it had when nobody confirms in time. Where systemd runs, a unit
    does the same after a reboot.
  - Generation 0 is the node without the overlay. Going there removes every generation.
  - The last three confirmed generations are kept.
options:
  state:
    description:
      - V(begun) records an attempt when O(calls) are not what the node is already. That is told by the digest of the
        confirmed generation, and by what the calls would change.
      - V(confirmed) makes the attempt the generation of the node, and takes the lease off the datapath's mode.
      - V(restored) takes the node to the generation O(to).
    type: str
    choices: [begun, confirmed, restored]
    required: true
  calls:
    description: The calls, in their order. Required with O(state=begun).
    type: list
    elements: dict
    default: []
    suboptions:
      module:
        description: The name of a module of this collection.
        type: str
        required: true
      arguments:
        description: Its arguments.
        type: dict
        required: true
  timeout:
    description: The seconds after which the node goes back when nobody has confirmed the attempt.
    type: float
    default: 300
  attempt:
    description: Which attempt to confirm, as RV(attempt) of O(state=begun) named it. Required with O(state=confirmed).
    type: str
  number:
    description:
      - The number of the attempt's generation. Required with O(state=confirmed).
      - With V(former) of O(to), the generation that was there before the attempt, for a node on which no attempt waits
        any more because it was confirmed.
    type: int
  to:
    description:
      - With O(state=restored), V(previous) is the generation that the confirmed one replaced, V(former) the one that
        was there before an attempt that nobody confirmed. Anything else is the number of a generation.
      - A node that went to its V(previous) generation stays there when that is asked for again.
    type: str
    default: previous
  drain_timeout:
    description: How long to wait for known flows to finish before the datapath is switched off, in seconds.
    type: float
    default: 10
  switched_on:
    description:
      - Whether the overlay is on after O(state=restored).
      - With V(former) of O(to) and an attempt that nobody confirmed, it is so if it was before the attempt and nobody
        has switched it off since.
    type: bool
    default: true
  runtime:
    description: The code that makes the calls, as the action plugin hands it over. Not for use in playbooks.
    type: str
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
notes:
  - What a generation needs of interfaces that are gone by then is left out when it is restored.
seealso:
  - module: ebpf.overlay.overlay_mode
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: Begin
  ebpf.overlay.overlay_generation:
    state: begun
    calls:
      - module: bpffs
        arguments: {}
    timeout: 120
  register: begun

- name: Keep it
  ebpf.overlay.overlay_generation:
    state: confirmed
    number: "{{ begun.number }}"
    attempt: "{{ begun.attempt }}"

- name: Go back
  ebpf.overlay.overlay_generation:
    state: restored
    to: previous
"""

RETURN = r"""
number:
  description: The generation that the node is at after the run (with O(state=begun), the one that it shall be at).
  returned: success
  type: int
  sample: 2
former:
  description: The confirmed generation before the run.
  returned: success
  type: int
  sample: 1
digest:
  description: The digest of the generation RV(number); empty for generation 0.
  returned: success
  type: str
  sample: 5f3b103b75d4b809c8b9e5f2039cb174a01a6bb91c8fd7617e81a5ff643c3038
attempt:
  description: The name of the attempt; empty when nothing has to be done.
  returned: success
  type: str
  sample: 2-183f2a6c11
was_on:
  description: Whether the overlay was on before the run.
  returned: success
  type: bool
  sample: true
differences:
  description: What differs from what the node shall be, by module.
  returned: success
  type: list
  elements: dict
  sample:
    - module: bpf_map_sync
      target: /sys/fs/bpf/ebpf-overlay/services
      reason: differs
      diff: {before: "services: 1 entries\n", after: "services: 2 entries\n"}
"""

import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils import _generations, _watchdog, _way_back
from ansible_collections.ebpf.overlay.plugins.module_utils._control import read_control, write_control
from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._generation_store import Store
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import Attempt, Generation, History
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._module import converge, run
from ansible_collections.ebpf.overlay.plugins.module_utils._plan import Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._plan_mode import Observed as ObservedMode
from ansible_collections.ebpf.overlay.plugins.module_utils._plan_mode import Wanted, plan_mode
from ansible_collections.ebpf.overlay.plugins.module_utils._way_back import (
    LOCK,
    Destination,
    interfaces,
    mode_off,
    mode_on,
    was_on,
)

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Observed:
    """``differences``: what the calls of the generation in question would change."""

    history: History
    was_on: bool = False
    differences: tuple[dict[str, Any], ...] = ()
    leftovers: bool = False


@dataclass(frozen=True)
class BeginAttempt:
    attempt: Attempt


@dataclass(frozen=True)
class ConfirmAttempt:
    number: int


@dataclass(frozen=True)
class RestoreGeneration:
    destination: Destination


class Runtime:
    """The code that makes calls, as a file for as long as the module runs."""

    def __init__(self, packed: str | None) -> None:
        if not packed:
            raise OverlayError(
                "start", "runtime", "it is not given", "Call this module from a playbook: its action plugin packs it."
            )
        self.content = base64.b64decode(packed)

    @contextlib.contextmanager
    def _file(self) -> Iterator[str]:
        with tempfile.NamedTemporaryFile(prefix="ebpf-overlay-", suffix=".zip") as stream:
            stream.write(self.content)
            stream.flush()
            yield stream.name

    def call(self, *arguments: str, given: Any) -> dict[str, Any]:
        """Raises :class:`OverlayError`, that of the program where it told one."""
        with self._file() as path:
            command = [_watchdog.python(), path, *arguments]
            done = subprocess.run(
                command, input=json.dumps(given), text=True, capture_output=True, check=False, cwd="/"
            )
        try:
            answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        except (ValueError, IndexError):
            answer = {"failed": True}
        if answer.get("failed"):
            parts = answer.get("error") or {
                "doing": arguments[0],
                "target": "a generation",
                "reason": done.stderr.strip()[-500:] or f"ended with {done.returncode}",
                "advice": "Look at the node.",
            }
            raise OverlayError(*(parts[name] for name in ("doing", "target", "reason", "advice")))
        return answer

    def rehearse(self, calls: Any) -> tuple[dict[str, Any], ...]:
        """In this process where its interpreter is the one that the modules need: a second one takes longer to start
        than all the calls together."""
        if os.path.realpath(sys.executable) != os.path.realpath(_watchdog.python()):
            return tuple(self.call("rehearse", given=list(calls))["differences"])
        with self._file() as path:
            for name, package in list(sys.modules.items()):
                if name.partition(".")[0] in ("ansible", "ansible_collections") and hasattr(package, "__path__"):
                    package.__path__.append(f"{path}/{name.replace('.', '/')}")
            return tuple(_way_back.rehearse(calls))


class Begun:
    """``state: begun``."""

    def __init__(self, params: dict[str, Any], runtime: Runtime, store: Store) -> None:
        self.calls = [{"module": call["module"], "arguments": call["arguments"]} for call in params["calls"]]
        self.digest = _generations.digest_of(self.calls)
        self.identity = f"{os.getpid():x}-{time.time_ns():x}"
        self.timeout = params["timeout"]
        self.runtime, self.store = runtime, store

    def observe(self) -> Observed:
        history = self.store.read()
        if history.attempt or history.digest != self.digest:
            return Observed(history, was_on(history))
        differences = self.runtime.rehearse([*self.calls, mode_on(history.confirmed)])
        return Observed(history, was_on(history), differences)

    def plan(self, seen: Observed) -> Plan:
        history = seen.history
        same = history.digest == self.digest
        begun = bool(history.attempt and history.attempt.identity == self.identity)
        number = history.confirmed if same else _generations.next_number(history)
        if begun and history.attempt:
            number = history.attempt.number
        wanted = not begun and (not same or bool(seen.differences) or history.attempt is not None)
        deadline = time.monotonic_ns() + int(self.timeout * NANOSECONDS)
        attempt = Attempt(self.identity, number, history.confirmed, deadline, _watchdog.boot_id(), seen.was_on)
        before = _generations.describe(history, history.confirmed)
        return Plan(
            operations=(BeginAttempt(attempt),) if wanted else (),
            before=before,
            after=f"generation {number} ({self.digest[:12]})\n" if wanted else before,
            result={
                "number": number,
                "former": history.confirmed,
                "digest": self.digest,
                "attempt": self.identity if wanted or begun else "",
                "was_on": seen.was_on,
                "differences": list(seen.differences),
            },
        )

    def apply(self, operations: tuple[Any, ...]) -> None:
        for operation in operations:
            attempt = operation.attempt
            generation = Generation(
                attempt.number,
                attempt.former,
                self.digest,
                datetime.now(timezone.utc).isoformat(timespec="seconds"),
                tuple(self.calls),
                interfaces(),
            )
            with one_run(path=LOCK):
                known = attempt.number == attempt.former
                self.store.begin(attempt, None if known else generation, self.runtime.content)
                _watchdog.arm(self.store.runtime(attempt.number), attempt.identity)


class Confirmed:
    """``state: confirmed``."""

    def __init__(self, params: dict[str, Any], store: Store) -> None:
        self.identity, self.number, self.store = params["attempt"], params["number"], store

    def observe(self) -> Observed:
        history = self.store.read()
        return Observed(history, was_on(history))

    def plan(self, seen: Observed) -> Plan:
        history = seen.history
        done = history.attempt is None and history.by == self.identity
        awaited = bool(history.attempt and history.attempt.identity == self.identity)
        unmet = f"There is no attempt {self.identity} to confirm: the node went back, or another run began a new one."
        return Plan(
            operations=() if done else (ConfirmAttempt(self.number),),
            before=_generations.describe(history, history.confirmed),
            after=f"generation {self.number}, confirmed\n",
            unmet=() if done or awaited else (unmet,),
            result={
                "number": self.number,
                "former": history.confirmed,
                "digest": history.generations[self.number].digest if self.number in history.generations else "",
                "attempt": self.identity,
                "was_on": seen.was_on,
                "differences": [],
            },
        )

    def apply(self, operations: tuple[Any, ...]) -> None:
        for operation in operations:
            with one_run(path=LOCK):
                # The lease first: when it is over, the datapath is off, and nothing may be confirmed.
                confirm_mode(operation.number)
                self.store.confirm(operation.number, self.identity)
                _watchdog.disarm()


def confirm_mode(number: int) -> None:
    """Take the lease off the mode. Raises :class:`OverlayError` when it is over, or the mode is not on."""
    with one_run():
        seen = ObservedMode(read_control(PIN_DIR), 0, time.monotonic_ns())
        planned = plan_mode(Wanted("confirm", generation=number), seen, PIN_DIR)
        if planned.unmet:
            raise OverlayError("confirm the overlay", PIN_DIR, " ".join(planned.unmet), "Run site.yml again.")
        for operation in planned.operations:
            write_control(PIN_DIR, operation)


class Restored:
    """``state: restored``."""

    def __init__(self, params: dict[str, Any], runtime: Runtime, store: Store) -> None:
        self.runtime, self.store = runtime, store
        history, to = store.read(), params["to"]
        number = _generations.target_of(history, to, params["number"])
        left = history.confirmed if to == "previous" else 0
        self.destination = Destination(
            number,
            f"restored-{time.time_ns():x}",
            was_on(history) if to == "former" and history.attempt else params["switched_on"],
            history.left if number == history.confirmed else left,
            params["drain_timeout"],
        )
        self.unknown = to == "previous" and not history.confirmed and history.attempt is None

    @property
    def number(self) -> int:
        return self.destination.number

    def observe(self) -> Observed:
        history = self.store.read()
        calls = list(_generations.calls_to(history, self.number, interfaces()))
        if self.number:
            calls.append(mode_on(self.number) if self.destination.on else mode_off())
        differences = self.runtime.rehearse(calls)
        if self.unknown and differences:
            raise OverlayError(
                "go back",
                "the previous generation",
                "this node has no history of it, although the overlay is on the node",
                "Its record was lost. Set overlay_rollback_to to 0 to take the overlay off.",
            )
        return Observed(history, was_on(history), differences, self.store.exists())

    def plan(self, seen: Observed) -> Plan:
        history = seen.history
        there = history.confirmed == self.number and history.attempt is None and (self.number or not seen.leftovers)
        wanted = not there or bool(seen.differences)
        generation = history.generations.get(self.number)
        return Plan(
            operations=(RestoreGeneration(self.destination),) if wanted else (),
            before=_generations.describe(history, history.confirmed)
            + "".join(f"{d['module']} {d['target']}: {d['reason']}\n" for d in seen.differences),
            after=_generations.describe(history, self.number),
            result={
                "number": self.number,
                "former": history.confirmed,
                "digest": generation.digest if generation else "",
                "attempt": "",
                "was_on": seen.was_on,
                "differences": list(seen.differences),
            },
        )

    def apply(self, operations: tuple[Any, ...]) -> None:
        for operation in operations:
            self.runtime.call("restore", given=asdict(operation.destination))


def ensure(module: AnsibleModule) -> dict[str, Any]:
    params, store = module.params, Store()
    wanted: Any
    if params["state"] == "confirmed":
        wanted = Confirmed(params, store)
    else:
        kind = Begun if params["state"] == "begun" else Restored
        wanted = kind(params, Runtime(params["runtime"]), store)
    planned = converge(module, wanted.observe, wanted.plan, wanted.apply)
    return {**planned.result, "changed": bool(planned.operations), "diff": planned.diff}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["begun", "confirmed", "restored"], "required": True},
            "calls": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "module": {"type": "str", "required": True},
                    "arguments": {"type": "dict", "required": True},
                },
            },
            "timeout": {"type": "float", "default": 300},
            "attempt": {"type": "str"},
            "number": {"type": "int"},
            "to": {"type": "str", "default": "previous"},
            "drain_timeout": {"type": "float", "default": 10},
            "switched_on": {"type": "bool", "default": True},
            # Kept out of the node's log, where it would be a hundred kilobytes of noise.
            "runtime": {"type": "str", "no_log": True},
        },
        required_if=[("state", "begun", ("calls",)), ("state", "confirmed", ("attempt", "number"))],
        supports_check_mode=True,
    )
    run(module, lambda: ensure(module))


if __name__ == "__main__":
    main()
