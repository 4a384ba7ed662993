# SPDX-License-Identifier: GPL-3.0-or-later
"""The manual page and the completion of overlayctl, from its arguments. Pure."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from .arguments import COMMANDS, DESCRIPTION, EXIT_CODES, FILES, NAME


def man(parser: argparse.ArgumentParser) -> str:
    """In the language of man(7)."""
    lines = [
        f'.TH {NAME.upper()} 8 "" "ebpf.overlay" "System Administration"',
        *(".SH NAME", f"{NAME} \\- look at the eBPF overlay of this node, and switch it"),
        *(".SH SYNOPSIS", f".B {NAME}", ".I COMMAND", "[\\fIarguments\\fR]"),
        *(".SH DESCRIPTION", _escaped(DESCRIPTION)),
        ".SH COMMANDS",
    ]
    for name, command in commands(parser).items():
        lines += [".TP", f".B {_escaped(_synopsis(name, command))}", _escaped(str(command.description))]
        for action in _arguments(command):
            lines += [".RS", ".TP", f"\\fB{_escaped(_named(action))}\\fR", _escaped(str(action.help)), ".RE"]
    lines.append(".SH EXIT STATUS")
    for number, meaning in EXIT_CODES.items():
        lines += [".TP", f".B {number}", _escaped(meaning)]
    lines.append(".SH FILES")
    for path, meaning in FILES.items():
        lines += [".TP", f".I {_escaped(path)}", _escaped(meaning)]
    return "\n".join(lines) + "\n"


def completion(parser: argparse.ArgumentParser) -> str:
    """For bash: commands, then the options of the command, and the values of options that have a list of them."""
    words, values = [], []
    for name, command in commands(parser).items():
        actions = _arguments(command)
        options = [option for action in actions for option in action.option_strings]
        plain = [str(choice) for action in actions if not action.option_strings for choice in action.choices or ()]
        words.append(f"    {name}) words={_quoted(' '.join([*plain, *options]))} ;;")
        values += [
            f"    {name}:{option}) words={_quoted(' '.join(map(str, action.choices)))} ;;"
            for action in actions
            for option in action.option_strings
            if action.choices
        ]
    return "\n".join([
        f"# bash completion for {NAME}: source <({NAME} completion bash)",
        f"_{NAME}() {{",
        "  local words= command=${COMP_WORDS[1]} former=${COMP_WORDS[COMP_CWORD-1]}",
        "  if [ \"$COMP_CWORD\" -eq 1 ]; then",
        f"    words={_quoted(' '.join(COMMANDS))}",
        "  else",
        "    case $command in",
        *(f"  {line}" for line in words),
        "    esac",
        "    case $command:$former in",
        *(f"  {line}" for line in values),
        "    esac",
        "  fi",
        "  COMPREPLY=($(compgen -W \"$words\" -- \"${COMP_WORDS[COMP_CWORD]}\"))",
        "}",
        f"complete -F _{NAME} {NAME}",
        "",
    ])  # fmt: skip


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """By name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _arguments(command: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in command._actions if "--help" not in action.option_strings]


def _synopsis(name: str, command: argparse.ArgumentParser) -> str:
    return " ".join([name, *_parts(_arguments(command))])


def _parts(actions: list[argparse.Action]) -> Iterator[str]:
    for action in actions:
        optional = action.option_strings or action.nargs == "?"
        yield f"[{_named(action)}]" if optional else _named(action)


def _named(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    if not action.option_strings:
        return str(value)
    return action.option_strings[0] if action.nargs == 0 else f"{action.option_strings[0]} {value}"


def _escaped(text: str) -> str:
    """A point or an apostrophe at the beginning of a line, and backslashes, mean something to man(7)."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text[:1] in (".", "'") else text


def _quoted(text: str) -> str:
    return f'"{text}"'
