# SPDX-License-Identifier: GPL-3.0-or-later
"""A C file with everything that it includes: found, put into one text, and identified by a digest.

Pure apart from reading files. Runs on the controller (the action plugin bundles) and on the target.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import posixpath
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Callable, Optional

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

# Text of a system header by its include name ("linux/ip.h"), or None when only the compiler itself knows it.
Resolve = Callable[[str], Optional[str]]

LARGEST_TEXT = 4 * 1024 * 1024

_COMMENT_OR_LITERAL = re.compile(
    r"""/\*.*?(?:\*/|\Z) | //[^\n]* | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'""", re.DOTALL | re.VERBOSE
)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*(?:include|include_next|import)[ \t]*(?:"([^"]+)"|<([^>]+)>)')
_PRAGMA_ONCE = re.compile(r"^[ \t]*#[ \t]*pragma[ \t]+once\b")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True)
class Include:
    """One ``#include``; ``line`` counts from 0, ``quoted`` tells ``"x.h"`` from ``<x.h>``."""

    line: int
    name: str
    quoted: bool


@dataclass(frozen=True)
class Bundle:
    """A C file (``main``) and the files that it includes by ``"..."``, by their paths relative to its folder."""

    main: str
    files: Mapping[str, str]


def _without_comments(text: str) -> str:
    """Comments become blanks; line numbers stay. Literals stay, since ``"a//b"`` is no comment."""

    def blank(found: re.Match[str]) -> str:
        token = found.group()
        return re.sub(r"[^\n]", " ", token) if token.startswith("/") else token

    return _COMMENT_OR_LITERAL.sub(blank, text)


def includes(text: str) -> list[Include]:
    """Every include in ``text``, also those in branches that the preprocessor would skip (it is not run here)."""
    found = []
    for number, line in enumerate(_without_comments(text).split("\n")):
        match = _INCLUDE.match(line)
        if match:
            found.append(Include(number, match.group(1) or match.group(2), match.group(1) is not None))
    return found


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError as error:
        raise OverlayError("read the source", path, error, "Check the path and its permissions.") from error
    except UnicodeDecodeError as error:
        raise OverlayError("read the source", path, f"not UTF-8: {error}", "Convert the file to UTF-8.") from error


def _candidates(including: str, name: str) -> list[str]:
    """Where C looks for ``"name"``: beside the including file, then beside the main one."""
    if posixpath.isabs(name):
        return []
    return [posixpath.normpath(posixpath.join(posixpath.dirname(including), name)), posixpath.normpath(name)]


def read_bundle(path: str) -> Bundle:
    """Read a C file with every ``#include "..."`` found beside it, transitively.

    A quoted include that is in no file here is left for the compiler (system headers may be quoted too).
    Raises :class:`OverlayError` for a file that is missing, unreadable or not UTF-8.
    """
    folder, main = os.path.split(os.path.abspath(path))
    files = {main: _read(path)}
    pending = [main]
    while pending:
        name = pending.pop()
        for include in includes(files[name]):
            if not include.quoted:
                continue
            for candidate in _candidates(name, include.name):
                if candidate in files:
                    break
                if os.path.isfile(os.path.join(folder, candidate)):
                    files[candidate] = _read(os.path.join(folder, candidate))
                    pending.append(candidate)
                    break
    return Bundle(main, files)


def pack(bundle: Bundle) -> str:
    """The bundle as a module argument. Packed, because each generation keeps it, and sends it to each node."""
    text = json.dumps({"main": bundle.main, "files": dict(bundle.files)}, sort_keys=True)
    return base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")


def unpack(packed: str) -> Bundle:
    """What :func:`pack` made."""
    try:
        data = json.loads(zlib.decompress(base64.b64decode(packed)))
        return Bundle(data["main"], {str(name): str(text) for name, text in data["files"].items()})
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise OverlayError(
            "take over the source", "bundle", f"not a packed bundle: {error}", "Leave bundle out and set src."
        ) from error


def flatten(bundle: Bundle) -> str:
    """One text with all bundled files in place of their includes.

    bcc rewrites map accesses in the main file only (frontends/clang/b_frontend_action.cc), so that headers which touch
    a map must become part of it. ``#line`` keeps the names and numbers in the compiler's messages those of the files.
    Raises :class:`OverlayError` when the includes multiply without end.
    """
    once: dict[str, str] = {}
    size = 0

    def expand(name: str, open_files: tuple[str, ...]) -> list[str]:
        nonlocal size
        text = bundle.files[name]
        size += len(text)
        if size > LARGEST_TEXT:
            raise OverlayError("join the source", name, "its includes add up to more than 4 MiB", "Add include guards.")
        found = {include.line: include for include in includes(text)}
        output = [f'#line 1 "{name}"']
        guarded = False
        for number, line in enumerate(text.split("\n")):
            include = found.get(number)
            target = _bundled(bundle, name, include) if include else None
            if target is not None:
                # A file that is still open is being included in a circle; its own guard would leave nothing of it.
                if target not in open_files:
                    output.extend(expand(target, (*open_files, target)))
                output.append(f'#line {number + 2} "{name}"')
            elif _PRAGMA_ONCE.match(line):
                guarded = True
                output.append("")
            else:
                output.append(line)
        if guarded:
            guard = once.setdefault(name, f"OVERLAY_ONCE_{len(once)}")
            output = [f"#ifndef {guard}", f"#define {guard}", *output, "#endif"]
        return output

    return "\n".join(expand(bundle.main, (bundle.main,))) + "\n"


def _bundled(bundle: Bundle, including: str, include: Include) -> str | None:
    if not include.quoted:
        return None
    return next((name for name in _candidates(including, include.name) if name in bundle.files), None)


def system_headers(text: str, roots: Iterable[str], resolve: Resolve) -> dict[str, str]:
    """Every header that ``text`` or one of ``roots`` includes, transitively, by its include name."""
    headers: dict[str, str] = {}
    pending = [include.name for include in includes(text)] + list(roots)
    seen = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        content = resolve(name)
        if content is None:
            continue
        headers[name] = content
        for include in includes(content):
            pending.append(include.name)
            if include.quoted:
                pending.extend(_candidates(name, include.name))
    return headers


def define_flags(defines: Mapping[str, Any]) -> list[str]:
    """``{"DEBUG": True, "SIZE": 4}`` -> ``["-DDEBUG=1", "-DSIZE=4"]``, sorted; an empty value makes ``-DNAME``.

    Raises :class:`OverlayError` for a name that is no C identifier and for a value that is no plain one.
    """
    flags = []
    for name, value in sorted(defines.items()):
        if not _IDENTIFIER.match(str(name)):
            raise OverlayError("define a macro", f"defines[{name!r}]", "not a C identifier", "Rename it.")
        if isinstance(value, (dict, list)) or "\n" in str(value):
            raise OverlayError("define a macro", f"defines[{name!r}]", "not a plain value", "Use a number or one line.")
        if isinstance(value, bool):
            value = int(value)
        flags.append(f"-D{name}" if value is None or value == "" else f"-D{name}={value}")
    return flags


def digest(text: str, flags: Iterable[str], headers: Mapping[str, str], compiler: str, machine: str) -> str:
    """The identity of a build: 64 hexadecimal digits (SHA-256) over everything that decides the bytecode.

    No path, no host name, no kernel version goes in, so that equal nodes come to equal digests.
    """
    state = hashlib.sha256()
    parts = [text, "\0".join(flags), compiler, machine]
    for name in sorted(headers):
        parts += [name, headers[name]]
    for part in parts:
        encoded = part.encode("utf-8", "surrogateescape")
        # The length in front keeps ("ab", "c") apart from ("a", "bc").
        state.update(len(encoded).to_bytes(8, "big") + encoded)
    return state.hexdigest()
