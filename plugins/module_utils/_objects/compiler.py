# SPDX-License-Identifier: GPL-3.0-or-later
"""The compiler: the only importer of bcc.

bcc compiles the C text and creates the maps that it declares; both stay file descriptors of this process and are gone
with it. The programs are loaded by us, so that they can use maps that are already pinned instead of bcc's fresh ones,
and so that the verifier's words can be told. bcc keeps LLVM's memory for the life of the process: compile only in one
that ends.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import importlib.util
import os
import re
import resource
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError, describe_errno
from ansible_collections.ebpf.overlay.plugins.module_utils._core.libraries import importable
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.features import OLDEST

from . import headers
from .pins import layout_of
from .plan import CARRY, MIGRATE
from .state import Built, Layout, Program

MISSING = (
    "bcc is not installed: install python3-bpfcc (Debian, Ubuntu) or python3-bcc (Fedora, RHEL); "
    "the package called bcc on the Python package index is something else."
)

# An undeclared function compiles to a call that the verifier then refuses with words that help nobody.
FLAGS = ("-Werror=implicit-function-declaration",)

# Where distributions put bcc when the interpreter that runs this is not theirs.
_DISTRIBUTION = (
    "/usr/lib/python3/dist-packages/bcc",
    "/usr/lib/python3.*/site-packages/bcc",
    "/usr/lib64/python3.*/site-packages/bcc",
)
_LOG_LINES = 12
_COMPILER_LINES = 40


@dataclass(frozen=True)
class Compiled:
    """``programs``: bytecode by name; ``tables``: bcc's fresh maps by name, as file descriptors."""

    programs: Mapping[str, bytes]
    tables: Mapping[str, int]
    module: Any = field(repr=False)
    """Owns the file descriptors."""


def kernel_release() -> str:
    return os.uname().release


def check_kernel() -> None:
    """Raises :class:`OverlayError` on a kernel that is too old for the redirect helpers."""
    release = kernel_release()
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found.group(1)), int(found.group(2))) < OLDEST:
        raise OverlayError(
            "load programs",
            f"kernel {release}",
            f"it is older than Linux {'.'.join(map(str, OLDEST))}",
            "Upgrade the kernel of this node.",
        )


def compiler_version() -> str | None:
    """bcc's version, read from its version.py without importing it; None where bcc is not installed."""
    folders: list[str] = []
    if importable("bcc"):
        spec = importlib.util.find_spec("bcc")
        folders += (spec.submodule_search_locations or ()) if spec else ()
    folders += sorted(folder for pattern in _DISTRIBUTION for folder in glob.glob(pattern))
    for folder in folders:
        if not os.path.exists(os.path.join(folder, "libbcc.py")):
            continue
        try:
            with open(os.path.join(folder, "version.py"), encoding="utf-8") as stream:
                found = re.search(r"""__version__\s*=\s*['"]([^'"]+)['"]""", stream.read())
        except OSError:
            found = None
        return f"bcc {found.group(1) if found else 'unknown'}"
    return None


# --- compile ----------------------------------------------------------------------------------------------------------


def compile_source(text: str, name: str, flags: Sequence[str], programs: Sequence[str]) -> Compiled:
    """Compile, create the maps, and hand out the bytecode of ``programs``.

    ``name``: the source file, for messages. Raises :class:`OverlayError` with the compiler's lines.
    """
    if re.search(r"^\s*BPF_TABLE_PINNED\b", text, re.MULTILINE):
        raise OverlayError(
            "compile", name, "it uses BPF_TABLE_PINNED", "Use BPF_TABLE: every map is pinned, and checked first."
        )
    # Before Linux 5.11 maps and programs count against this limit.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    messages: list[str] = []
    try:
        with headers.tree() as tree, _captured_stderr(messages), _environment("BCC_KERNEL_SOURCE", tree):
            module = _compiler()(text=text.encode("utf-8"), cflags=[*headers.cflags(tree), *FLAGS, *flags])
    except Exception as error:  # bcc raises plain Exception
        raise _compile_error(name, "".join(messages), error) from error

    from bcc.libbcc import lib

    functions = [lib.bpf_function_name(module.module, i).decode() for i in range(lib.bpf_num_functions(module.module))]
    for program in programs:
        if program not in functions:
            raise OverlayError(
                "find a program",
                f"{program} in {name}",
                f"the file has {', '.join(functions) or 'no function'}",
                "Correct the list of programs; a function that is static is none.",
            )
    return Compiled({program: module.dump_func(program) for program in programs}, _tables(lib, module), module)


def _compiler() -> Any:
    from bcc import BPF

    class Compiler(BPF):
        def _trace_autoload(self) -> None:
            """bcc attaches functions whose name begins with kprobe__ and the like; here nothing is ever attached."""

    return Compiler


def _tables(lib: Any, module: Any) -> dict[str, int]:
    import ctypes

    lib.bpf_num_tables.restype = ctypes.c_size_t
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    lib.bpf_table_name.restype = ctypes.c_char_p
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    names = [lib.bpf_table_name(module.module, i) for i in range(lib.bpf_num_tables(module.module))]
    return {name.decode(): lib.bpf_table_fd(module.module, name) for name in names}


def _compile_error(name: str, output: str, error: Exception) -> OverlayError:
    if os.strerror(errno.EPERM) in output:
        return _no_capability("create the maps", name)
    lines = output.splitlines()
    first = next((number for number, line in enumerate(lines) if "error:" in line), 0)
    said = "\n".join(lines[first : first + _COMPILER_LINES]) or str(error)
    return OverlayError("compile", name, f"the compiler said:\n{said}\n", "Correct the source and run again.")


def _no_capability(doing: str, target: str) -> OverlayError:
    return OverlayError(
        doing,
        target,
        OSError(errno.EPERM, ""),
        "Run with become: true; CAP_BPF and CAP_NET_ADMIN are needed (CAP_SYS_ADMIN inside some containers).",
    )


@contextlib.contextmanager
def _captured_stderr(into: list[str]) -> Iterator[None]:
    """clang writes to file descriptor 2, past Python's sys.stderr."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.memfd_create("stderr"), "w+b") as stream:
        os.dup2(stream.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            stream.seek(0)
            into.append(stream.read().decode("utf-8", "replace"))


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    former = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if former is None:
            del os.environ[name]
        else:
            os.environ[name] = former


# --- load -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rehearsal:
    """Everything that a build will pin, loaded and accepted by the kernel, and not pinned yet."""

    built: Built
    descriptors: Mapping[str, int]
    compiled: Compiled = field(repr=False)


def fresh_layouts(compiled: Compiled) -> dict[str, Layout]:
    return {name: layout_of(fd) for name, fd in compiled.tables.items()}


def load(compiled: Compiled, decisions: Mapping[str, str], folder: str, source: str) -> Rehearsal:
    """Load the compiled programs with the maps that ``decisions`` (of ``plan``) give them.

    Pins nothing. Raises :class:`OverlayError` with the verifier's last lines.
    """
    descriptors = {}
    for name, decision in decisions.items():
        if decision == CARRY:
            descriptors[name] = bpf.obj_get(f"{folder}/{name}")
            continue
        descriptors[name] = compiled.tables[name]
        if decision == MIGRATE:
            old = bpf.obj_get(f"{folder}/{name}")
            try:
                copy_entries(old, descriptors[name], f"{folder}/{name}")
            finally:
                os.close(old)
    replace = {fd: descriptors[name] for name, fd in compiled.tables.items()}
    programs = []
    for name, code in compiled.programs.items():
        descriptors[name] = _load_program(name, with_maps(code, replace), source)
        info = bpf.prog_info(descriptors[name])
        programs.append(Program(name, info.id, info.tag, info.xlated_size))
    map_ids = {name: bpf.map_info(descriptors[name]).id for name in decisions}
    return Rehearsal(Built(tuple(programs), fresh_layouts(compiled), map_ids), descriptors, compiled)


def _load_program(name: str, code: bytes, source: str) -> int:
    try:
        return bpf.prog_load(code, name)
    except OSError as error:
        log = getattr(error, "log", "")
        if error.errno == errno.EPERM and not log.strip():
            raise _no_capability("load a program", f"{name} of {source}") from error
        lines = "\n".join(log.strip().splitlines()[-_LOG_LINES:])
        said = f"; the verifier's last lines:\n{lines}\n" if lines else ""
        problem = OverlayError(
            "load a program",
            f"{name} of {source}",
            f"{describe_errno(error.errno or 0)}{said}",
            "Correct the program: its last lines above name the instruction and the rule.",
        )
        problem.errno = error.errno
        raise problem from error


def with_maps(code: bytes, replace: Mapping[int, int]) -> bytes:
    """The bytecode with other file descriptors in the instructions that load a map's address.

    ``struct bpf_insn`` (include/uapi/linux/bpf.h): opcode, registers, 16-bit offset, 32-bit immediate. Such a load is
    opcode 0x18 with source register 1 (BPF_PSEUDO_MAP_FD) or 2 (BPF_PSEUDO_MAP_VALUE), and takes two instructions.
    """
    patched = bytearray(code)
    position = 0
    while position < len(patched):
        opcode, registers, _offset, immediate = struct.unpack_from("=BBhi", patched, position)
        source = registers >> 4 if sys.byteorder == "little" else registers & 0x0F
        if opcode == 0x18:
            if source in (1, 2):
                struct.pack_into("=i", patched, position + 4, replace.get(immediate, immediate))
            position += 8
        position += 8
    return bytes(patched)


def copy_entries(old: int, new: int, target: str) -> None:
    """Copy all entries into a fresh map that differs in capacity only. Raises :class:`OverlayError` if they do not fit.

    What a running program writes into the old map afterwards is not in the new one.
    """
    info = bpf.map_info(old)
    room = bpf.map_info(new).max_entries
    is_array = info.kind.indexed
    copied = 0
    key: bytes | None = None
    while True:
        key = bpf.map_next_key(old, key, info.key_size)
        if key is None:
            return
        value = bpf.map_lookup(old, key, info.value_stride)
        # An array's slots exist from the start, as zero.
        if value is None or (is_array and not any(value)):
            continue
        copied += 1
        if copied > room:
            raise _does_not_fit(target, room)
        try:
            bpf.map_update(new, key, value)
        except OSError as error:
            if error.errno in (errno.E2BIG, errno.ENOSPC):
                raise _does_not_fit(target, room) from error
            raise OverlayError("migrate a map", target, error, "The old map is untouched.") from error


def _does_not_fit(target: str, room: int) -> OverlayError:
    return OverlayError(
        "migrate a map",
        target,
        OSError(errno.E2BIG, ""),
        f"Its entries do not fit into the new capacity of {room}; the old map is untouched.",
    )
