# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's variables by the role's argument specification: what was given as text becomes what is meant. Pure."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

Option = Mapping[str, Any]

_YES = ("yes", "on", "true", "1", "y", "t")
_NO = ("no", "off", "false", "0", "n", "f", "")


def convert(name: str, value: Any, option: Option) -> Any:
    """The value as its ``option`` (one of an argument specification) wants it; ``-e name=value`` gives text only.

    Raises :class:`OverlayError` for what cannot be meant so.
    """
    kind = str(option.get("type", "str"))
    try:
        found = _KINDS.get(kind, _as_it_is)(value, option)
    except (ValueError, TypeError) as error:
        raise _refusal(name, value, str(error)) from None
    choices = option.get("choices")
    if choices and found not in choices:
        raise _refusal(name, value, f"it is none of {', '.join(map(str, choices))}")
    return found


def _refusal(name: str, value: Any, reason: str) -> OverlayError:
    return OverlayError(
        "accept a variable", f"{name}: {value!r}"[:200], reason, "Correct it where it is set, and run the play again."
    )


def _as_it_is(value: Any, _option: Option) -> Any:
    return value


def _bool(value: Any, _option: Option) -> bool:
    text = str(value).strip().lower()
    if isinstance(value, bool) or text in (*_YES, *_NO):
        return text in _YES
    raise ValueError("it is neither true nor false")


def _number(value: Any, read: Callable[[Any], Any]) -> Any:
    if isinstance(value, bool):
        raise ValueError("it is no number")
    try:
        return read(value if isinstance(value, (int, float)) else str(value).strip())
    except ValueError:
        raise ValueError("it is no number") from None


def _float(value: Any, _option: Option) -> float:
    return float(_number(value, float))


def _int(value: Any, _option: Option) -> int:
    number = _number(value, float)
    if number != int(number):
        raise ValueError("it is no whole number")
    return int(number)


def _str(value: Any, _option: Option) -> str:
    if isinstance(value, (Mapping, list, tuple)):
        raise ValueError("it is a list or a dictionary, where text is wanted")
    return str(value)


def _list(value: Any, option: Option) -> list[Any]:
    """A list; of text, the one that it is in JSON, or its parts between commas."""
    if isinstance(value, str):
        text = value.strip()
        parts = (part.strip() for part in text.split(","))
        value = _json(text) if text[:1] in ("[", "{") else [part for part in parts if part]
    if isinstance(value, (Mapping, bool, int, float)):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise ValueError("it is no list")
    wanted = option.get("elements")
    if wanted == "dict":
        broken = [element for element in value if not isinstance(element, Mapping)]
        if broken:
            raise ValueError(f"{broken[0]!r} in it is no dictionary")
    elif wanted == "str":
        return [_str(element, option) for element in value]
    return list(value)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is no JSON ({error}); with -e, leave out blanks, or give all of it as JSON") from None


_KINDS: dict[str, Callable[[Any, Option], Any]] = {
    "bool": _bool,
    "int": _int,
    "float": _float,
    "str": _str,
    "list": _list,
}


def converted(values: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    """All variables of the user's among ``values``, converted. Raises :class:`OverlayError`."""
    return {
        name: convert(name, value, options[name])
        for name, value in values.items()
        if name in options and value is not None
    }


def agreed(values: Mapping[str, Any], name: str) -> Any:
    """The one value of a setting of the whole run, from the values by node; None where nobody sets it.

    Raises :class:`OverlayError` where nodes differ in it.
    """
    by_text: dict[str, list[str]] = {}
    for node, value in values.items():
        by_text.setdefault(json.dumps(value, default=str), []).append(node)
    if len(by_text) > 1:
        told = "; ".join(f"{text} for {_some(nodes)}" for text, nodes in by_text.items())
        raise OverlayError(
            "accept a variable",
            name,
            f"it is one setting of the whole run, and differs from node to node: {told}",
            "Set it once, for the group overlay_nodes or with -e.",
        )
    return next(iter(values.values()), None)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def from_where_the_user_stands(path: str, folder: str) -> str:
    """A path as the shell in ``folder`` would understand it; empty stays empty."""
    return os.path.normpath(os.path.join(folder, os.path.expanduser(path))) if path else ""
