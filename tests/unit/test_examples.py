# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of the documentation: three for each module, with arguments that the module takes, and which use what
modules return. Ansible parses all of them as one play. What the modules then do is what tests/integration looks at.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

ROOT = Path(__file__).parents[2]
PREFIX = "ebpf.overlay."
MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
RULES = ("mutually_exclusive", "required_together", "required_one_of", "required_if", "required_by")


def module_named(name: str) -> Any:
    return importlib.import_module(f"ansible_collections.ebpf.overlay.plugins.modules.{name}")


def examples(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load(module_named(name).EXAMPLES))


def calls(tasks: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any], str]]:
    """Of modules of this collection: name, arguments, and the variable that gets the result."""
    return [
        (key.removeprefix(PREFIX), value or {}, task.get("register", ""))
        for task in tasks
        for key, value in task.items()
        if key.startswith(PREFIX)
    ]


class AskedError(Exception):
    """What a module hands to AnsibleModule."""


def validator(name: str, monkeypatch: pytest.MonkeyPatch) -> ArgumentSpecValidator:
    def ask(argument_spec: dict[str, Any], **options: Any) -> None:
        raise AskedError(argument_spec, {rule: options[rule] for rule in RULES if rule in options})

    found = module_named(name)
    monkeypatch.setattr(found, "AnsibleModule", ask)
    with pytest.raises(AskedError) as asked:
        found.main()
    specification, rules = asked.value.args
    return ArgumentSpecValidator(specification, **rules)


def stand_in(specification: ArgumentSpecValidator, option: str) -> Any:
    """For what a variable gives: it is of the type that is wanted, which the template's text is not."""
    kind = specification.argument_spec.get(option, {}).get("type", "str")
    return {"list": [], "dict": {}, "int": 1, "float": 1.0, "bool": True}.get(kind, "text")


@pytest.mark.parametrize("name", MODULES)
def test_three_examples_whose_arguments_the_modules_take(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = calls(examples(name))
    assert len([call for call in made if call[0] == name]) >= 3
    for one, arguments, __ in made:
        specification = validator(one, monkeypatch)
        checked = specification.validate(
            {key: value if "{{" not in str(value) else stand_in(specification, key) for key, value in arguments.items()}
        )
        assert checked.error_messages == []


@pytest.mark.parametrize("name", MODULES)
def test_what_examples_use_of_a_result_is_documented(name: str) -> None:
    tasks = examples(name)
    text = module_named(name).EXAMPLES
    for one, __, variable in calls(tasks):
        if variable:
            used = set(re.findall(rf"\b{variable}\.(\w+)", text))
            assert used <= set(yaml.safe_load(module_named(one).RETURN)), f"{variable} of {one}"


def test_ansible_takes_all_examples_in_a_play(tmp_path: Path) -> None:
    tasks = [task for name in MODULES for task in examples(name)]
    assert len({task["name"] for task in tasks}) == len(tasks), "two examples have one name"
    play = tmp_path / "play.yml"
    play.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    command = [sys.executable, "-m", "ansible", "playbook", "--syntax-check", str(play)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "DEPRECAT" not in done.stderr
