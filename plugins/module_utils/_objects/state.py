# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``bpf_object`` sees and wants: pins, the records of builds, what a compiler made. Pure.

What is ours in a folder for pins is what two symbolic links in it name. ``build`` is the record of the last build that
was finished; ``build-next`` announces one before its first pin is made. New pins get temporary names (``NAME-new``),
are renamed into place, and ``build-next`` becomes ``build`` last, so that a run that is killed anywhere leaves a state
in which the next one knows everything that it has to finish or to remove.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Union

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

BUILD = "build"
NEXT = "build-next"
# A C identifier holds no hyphen, so that this can collide with no program and no map; bpffs refuses dots.
NEW = "-new"
LONGEST_RECORD = 4095  # symlink(2): PATH_MAX with its end


@dataclass(frozen=True)
class Layout:
    """What must be equal for a pinned map to serve a new program. Sizes in bytes; ``type`` by its kernel name."""

    type: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int

    def __str__(self) -> str:
        flags = f", flags {self.flags:#x}" if self.flags else ""
        return f"{self.type}, key {self.key_size}, value {self.value_size}, capacity {self.max_entries}{flags}"


@dataclass(frozen=True)
class MapPin:
    name: str
    id: int
    layout: Layout


@dataclass(frozen=True)
class ProgramPin:
    """``xlated_size``: in bytes, as the kernel runs it."""

    name: str
    id: int
    tag: str
    xlated_size: int


@dataclass(frozen=True)
class OtherEntry:
    """A folder, a symbolic link (to ``target``), or a pin that is neither map nor program."""

    name: str
    target: str | None = None


Entry = Union[MapPin, ProgramPin, OtherEntry]


@dataclass(frozen=True)
class Record:
    """What a build made, by name with the kernel's ids, which are unique as long as the kernel runs and the pins live.

    Tags would not do: programs that differ only in which map they use have the same one.

    This is format 1, which has no number, so that all releases read it. Another one would begin with ``format=``.
    """

    digest: str
    programs: Mapping[str, int]
    maps: Mapping[str, int]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.programs) | frozenset(self.maps)

    def encode(self) -> str:
        """One line, since it is the target of a symbolic link."""
        text = f"digest={self.digest};programs={_encode_ids(self.programs)};maps={_encode_ids(self.maps)}"
        if len(text) > LONGEST_RECORD:
            raise OverlayError(
                "record the build",
                f"{len(self.programs)} programs and {len(self.maps)} maps",
                f"their names take {len(text)} bytes and a symbolic link holds {LONGEST_RECORD}",
                "Split the source into two objects with a folder for pins each.",
            )
        return text

    @staticmethod
    def decode(text: str) -> Record | None:
        """What :meth:`encode` wrote; None when the text is something else."""
        found = re.fullmatch(r"digest=([0-9a-f]{64});programs=([\w:,]*);maps=([\w:,]*)", text)
        try:
            record = Record(found.group(1), _decode_ids(found.group(2)), _decode_ids(found.group(3))) if found else None
        except ValueError:
            return None
        return record if record and record.encode() == text else None


def _encode_ids(ids: Mapping[str, int]) -> str:
    return ",".join(f"{name}:{id_}" for name, id_ in sorted(ids.items()))


def _decode_ids(text: str) -> dict[str, int]:
    pairs = [item.split(":") for item in text.split(",") if item]
    return {name: int(id_) for name, id_ in pairs}


@dataclass(frozen=True)
class Program:
    """A program that was compiled and that the verifier took."""

    name: str
    id: int
    tag: str
    xlated_size: int


@dataclass(frozen=True)
class Built:
    """What the compiler and the verifier made of the source, before anything of it is pinned.

    ``map_ids``: of the maps that the programs were loaded with, so carried over or new.
    """

    programs: tuple[Program, ...]
    maps: Mapping[str, Layout]
    map_ids: Mapping[str, int]


@dataclass(frozen=True)
class Desired:
    """``digest`` is None where the compiler (and so its version) is missing."""

    present: bool
    programs: tuple[str, ...] = ()
    digest: str | None = None
    on_map_change: str = "refuse"


@dataclass(frozen=True)
class Observed:
    """``entries``: what is in the folder for pins, None without such a folder. ``built``: None if not compiled.

    ``trees``: folders with headers for the compiler that killed runs left behind.
    """

    folder: str
    entries: Mapping[str, Entry] | None = None
    unmet: tuple[str, ...] = ()
    built: Built | None = None
    trees: tuple[str, ...] = ()
    records: tuple[Record | None, Record | None] = field(init=False, default=(None, None))

    def __post_init__(self) -> None:
        object.__setattr__(self, "records", (self._record(BUILD), self._record(NEXT)))

    def _record(self, link: str) -> Record | None:
        entry = (self.entries or {}).get(link)
        if entry is None:
            return None
        target = entry.target or "" if isinstance(entry, OtherEntry) else ""
        if newer := re.match(r"format=(\d+)", target):
            raise OverlayError(
                "read the build record",
                f"{self.folder}/{link}",
                f"its format is {newer[1]}, and this release knows those up to 1",
                "Use the release of the collection that wrote it.",
            )
        record = Record.decode(target)
        if record is None:
            raise OverlayError(
                "read the build record",
                f"{self.folder}/{link}",
                "it is not a record of ours",
                "Choose another pin_dir, or remove what is in the way.",
            )
        return record

    @property
    def pins(self) -> Mapping[str, Entry]:
        return self.entries or {}

    @property
    def ours(self) -> frozenset[str]:
        """Every name that a run of ours may have pinned here."""
        return frozenset().union(*(record.names for record in self.records if record))

    def map_pin(self, name: str) -> MapPin | None:
        entry = self.pins.get(name)
        return entry if isinstance(entry, MapPin) else None

    def program_pin(self, name: str) -> ProgramPin | None:
        entry = self.pins.get(name)
        return entry if isinstance(entry, ProgramPin) else None
