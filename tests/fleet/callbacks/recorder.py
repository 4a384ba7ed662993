# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes every task result of a run as a line of JSON to the file that OVERLAY_RECORD names."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: recorder
type: aggregate
short_description: Writes every task result as a line of JSON
description:
  - For tests that compare a dry run with a real run, task by task and host by host.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "recorder"
    CALLBACK_NEEDS_ENABLED = True

    def _write(self, outcome: str, result: Any) -> None:
        line = {
            "outcome": outcome,
            "host": result.host.get_name(),
            "task": result.task.get_name().split(" : ")[-1],
            "result": result.result,
        }
        with open(os.environ["OVERLAY_RECORD"], "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, default=str) + "\n")

    def v2_runner_on_ok(self, result: Any) -> None:
        self._write("ok", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._write("ignored" if ignore_errors else "failed", result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._write("skipped", result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._write("unreachable", result)
