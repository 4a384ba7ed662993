# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs what makes the calls of a generation, with all that it imports, into a program for the node."""

from __future__ import annotations

import ast
import fcntl
import importlib.util
import io
import posixpath
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ansible import constants
from ansible.release import __version__

from ansible_collections.ebpf.overlay.plugins.module_utils._generations.command import NAME
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.model import FORMAT
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.stored_runtime import FORMAT_FILE

COLLECTION = "ansible_collections.ebpf.overlay.plugins"
ROOTS = tuple(
    f"{COLLECTION}.module_utils.{name}" for name in ("_generations.way_back", "_generations.calls", "_node.main")
)
SHIPPED = ("ansible.module_utils", f"{COLLECTION}.module_utils", f"{COLLECTION}.modules")

_MAIN = f"""\
import os, sys
if os.path.basename(sys.argv[0]) == "{NAME}":
    from {COLLECTION}.module_utils._node.main import main
else:
    from {COLLECTION}.module_utils._generations.way_back import main
sys.exit(main(sys.argv[1:]))
"""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same files give the same bytes


def packed_once() -> bytes:
    """A tenth of a second of work for the first task of a run; all others, each in a process of its own, read it."""
    path = Path(constants.DEFAULT_LOCAL_TMP, "ebpf-overlay-runtime.zip")
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            new = path.with_suffix(".new")
            new.write_bytes(pack())
            new.rename(path)  # whole or not at all, on a full disk too
        return path.read_bytes()


def pack(more: Sequence[str] = ()) -> bytes:
    """A zip file that ``python3`` can run. ``more``: further modules, by their full names, to put into it."""
    files = {"__main__.py": _MAIN, "ansible/__init__.py": f"__version__ = {__version__!r}\n"}
    pending = [*ROOTS, *more]
    seen = set(pending)
    while pending:
        name = pending.pop()
        found = _find(name)
        if found is None:
            continue
        path, is_package = found
        text = path.read_text(encoding="utf-8")
        files[name.replace(".", "/") + ("/__init__.py" if is_package else ".py")] = text
        for imported in _imports(text, name, is_package):
            for candidate in _with_parents(imported):
                if candidate.startswith(SHIPPED) and candidate not in seen:
                    seen.add(candidate)
                    pending.append(candidate)
    for name in list(files):
        folder = posixpath.dirname(name)
        while folder:
            files.setdefault(f"{folder}/__init__.py", "")
            folder = posixpath.dirname(folder)
    files[FORMAT_FILE] = f"{FORMAT}\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), files[name], zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _find(name: str) -> tuple[Path, bool] | None:
    """(file, whether it is a package) of a module; None for a name that is something inside of a module."""
    top, _dot, rest = name.partition(".")
    spec = importlib.util.find_spec(top if top == "ansible" else "ansible_collections.ebpf.overlay")
    inner = rest if top == "ansible" else name.partition("ebpf.overlay.")[2]
    for folder in spec.submodule_search_locations or () if spec else ():
        base = Path(folder, *inner.split("."))
        if base.with_suffix(".py").is_file():
            return base.with_suffix(".py"), False
        if (base / "__init__.py").is_file():
            return base / "__init__.py", True
    return None


def _imports(text: str, name: str, is_package: bool) -> Iterator[str]:
    package = name if is_package else name.rpartition(".")[0]
    for node in _statements(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """As ast.walk, without the expressions, which are most of a tree and import nothing."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        for name in ("body", "orelse", "handlers", "finalbody", "cases"):
            pending += getattr(node, name, ())


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))
