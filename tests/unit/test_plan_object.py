# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans for programs and pins, against a model of a folder on a bpffs that can be killed at any step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.bpffs import (
    Mount,
    check_folder,
    parse_mounts,
    visible_bpffs,
)
from ansible_collections.ebpf.overlay.plugins.module_utils._objects.plan import (
    CARRY,
    CREATE,
    MIGRATE,
    REPLACE,
    Announce,
    Commit,
    MakeFolder,
    PinNew,
    Publish,
    RemoveFolder,
    Unpin,
    decide_maps,
    intact,
    plan_object,
)
from ansible_collections.ebpf.overlay.plugins.module_utils._objects.state import (
    BUILD,
    NEW,
    NEXT,
    Built,
    Desired,
    Entry,
    Layout,
    MapPin,
    Observed,
    OtherEntry,
    Program,
    ProgramPin,
    Record,
)

FOLDER = "/sys/fs/bpf/x"
HASH = Layout("hash", 4, 8, 64, 0)
FOREIGN: dict[str, Entry] = {"links": OtherEntry("links"), "zz": MapPin("zz", 7, HASH)}


class Model:
    """The folder. ``entries`` is None until it is made. New objects get new ids, as in the kernel."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] | None = None
        self.last_id = 100
        self.uses: dict[int, dict[str, int]] = {}

    def observe(self) -> Observed:
        return Observed(FOLDER, None if self.entries is None else dict(self.entries))

    def rehearse(self, number: int, programs: Iterable[str], maps: dict[str, int]) -> Built:
        """What compiling and loading gives: new ids for all but the maps that are carried over."""
        layouts = {name: replace(HASH, max_entries=size) for name, size in maps.items()}
        decisions = decide_maps(self.observe(), layouts, "replace")
        map_ids = {}
        for name, decision in decisions.items():
            pinned = self.observe().map_pin(name)
            map_ids[name] = pinned.id if decision == CARRY and pinned else self._next()
        # The tag stays the same whichever maps a program uses: it must decide nothing.
        loaded = tuple(Program(name, self._next(), f"{number:016x}", 100) for name in sorted(programs))
        self.uses.update({program.id: dict(map_ids) for program in loaded})
        return Built(loaded, layouts, map_ids)

    def apply(self, plan: Plan, built: Built | None, stop_after: int | None = None) -> None:
        operations = plan.operations if stop_after is None else plan.operations[:stop_after]
        objects: dict[str, Entry] = {}
        if built is not None:
            objects.update({name: MapPin(name, built.map_ids[name], layout) for name, layout in built.maps.items()})
            objects.update({p.name: ProgramPin(p.name, p.id, p.tag, p.xlated_size) for p in built.programs})
        for operation in operations:
            self._one(operation, objects)

    def _next(self) -> int:
        self.last_id += 1
        return self.last_id

    def _one(self, operation: Any, objects: dict[str, Entry]) -> None:
        if isinstance(operation, MakeFolder):
            assert self.entries is None
            self.entries = {}
            return
        assert self.entries is not None
        if isinstance(operation, Unpin):
            assert operation.name not in FOREIGN
            del self.entries[operation.name]
        elif isinstance(operation, Announce):
            self.entries[NEXT] = OtherEntry(NEXT, operation.record)
        elif isinstance(operation, PinNew):
            assert operation.name + NEW not in self.entries, "the kernel says EEXIST"
            self.entries[operation.name + NEW] = objects[operation.name]
        elif isinstance(operation, Publish):
            assert operation.name not in FOREIGN
            self.entries[operation.name] = self.entries.pop(operation.name + NEW)
        elif isinstance(operation, Commit):
            entry = self.entries.pop(NEXT)
            assert isinstance(entry, OtherEntry)
            self.entries[BUILD] = replace(entry, name=BUILD)
        elif isinstance(operation, RemoveFolder):
            assert not self.entries
            self.entries = None
        else:
            raise AssertionError(operation)


def desired_of(number: int, programs: Iterable[str]) -> Desired:
    return Desired(True, tuple(sorted(programs)), f"{number:064x}", on_map_change="replace")


Build = tuple[int, frozenset[str], dict[str, int]]
builds = st.tuples(
    st.integers(1, 3),
    st.frozensets(st.sampled_from(["p", "q", "r"]), min_size=1),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from([64, 128])),
)


def run(model: Model, build: Build | None, stop_after: int | None = None) -> Plan:
    """One run of the module: None is ``state: absent``."""
    if build is None:
        plan = plan_object(model.observe(), Desired(False))
        model.apply(plan, None, stop_after)
        return plan
    number, programs, maps = build
    # The digest stands for the source, so for its programs and maps too.
    desired = desired_of(number + 10 * hash((programs, frozenset(maps.items()))) % (1 << 60), programs)
    observed, built = model.observe(), None
    if not intact(observed, desired):
        built = model.rehearse(number, programs, maps)
        observed = replace(observed, built=built)
    plan = plan_object(observed, desired)
    model.apply(plan, built, stop_after)
    return plan


@given(
    st.lists(st.tuples(st.one_of(st.none(), builds), st.one_of(st.none(), st.integers(0, 12))), max_size=5),
    st.one_of(st.none(), builds),
    st.booleans(),
)
@example(
    # Found by this test when records held tags: a program that was published before the kill had the tag, but not the
    # maps, of the one recorded.
    [((1, frozenset("pr"), {"a": 64}), None), ((1, frozenset("pq"), {}), 4)],
    (1, frozenset("pr"), {"a": 64}),
    False,
)
def test_any_history_of_killed_runs_ends_right(
    history: list[tuple[Build | None, int | None]], last: Build | None, foreign: bool
) -> None:
    model = Model()
    if foreign:
        model.entries = dict(FOREIGN)
    for build, stop_after in history:
        run(model, build, stop_after)
    run(model, last)

    left = {name: entry for name, entry in (model.entries or {}).items() if name not in FOREIGN}
    if last is None:
        assert left == {}
        assert (model.entries is None) or foreign
    else:
        assert set(left) == {BUILD, *last[1], *last[2]}, "everything is there, and nothing else"
        for name, size in last[2].items():
            entry = left[name]
            assert isinstance(entry, MapPin)
            assert entry.layout.max_entries == size
        ids = {name: entry.id for name, entry in left.items() if isinstance(entry, MapPin)}
        for name in last[1]:
            program = left[name]
            assert isinstance(program, ProgramPin)
            assert model.uses[program.id] == ids
    if foreign:
        assert model.entries is not None
        assert {name: model.entries[name] for name in FOREIGN} == FOREIGN
    again = run(model, last)
    assert again.operations == ()
    assert again.before == again.after


@given(builds, builds)
def test_unchanged_maps_are_carried_over(first: Build, second: Build) -> None:
    model = Model()
    run(model, first)
    before = dict(model.entries or {})
    run(model, second)
    after = model.entries or {}
    for name, size in second[2].items():
        assert (before.get(name) == after[name]) == (first[2].get(name) == size)


@given(builds)
def test_the_diff_names_what_the_next_run_finds(build: Build) -> None:
    model = Model()
    first = run(model, build)
    assert first.before == ""
    assert run(model, build).before == first.after


# --- what makes a build intact ----------------------------------------------------------------------------------------


@pytest.fixture
def model() -> Model:
    model = Model()
    run(model, (1, frozenset({"p"}), {"a": 64}))
    return model


def program(model: Model) -> ProgramPin:
    entry = (model.entries or {})["p"]
    assert isinstance(entry, ProgramPin)
    return entry


@pytest.mark.parametrize("change", ["program", "map", "kind", "gone", "map gone"])
def test_a_build_that_was_tampered_with_is_not_intact(model: Model, change: str) -> None:
    assert model.entries is not None
    if change == "program":
        model.entries["p"] = replace(program(model), id=999)
    elif change == "map":
        model.entries["a"] = MapPin("a", 999, HASH)
    elif change == "kind":
        model.entries["p"] = OtherEntry("p")
    elif change == "gone":
        del model.entries["p"]
    else:
        del model.entries["a"]
    build: Build = (1, frozenset({"p"}), {"a": 64})
    assert run(model, build).result["compiled"]
    assert not run(model, build).operations


# --- refusals ---------------------------------------------------------------------------------------------------------


def observed_with(layout: Layout) -> Observed:
    record = Record("0" * 64, {}, {"m": 1})
    return Observed(FOLDER, {"m": MapPin("m", 1, layout), BUILD: OtherEntry(BUILD, record.encode())})


@pytest.mark.parametrize(
    ("new", "policy", "decision"),
    [
        (HASH, "refuse", CARRY),
        (replace(HASH, max_entries=65), "migrate", MIGRATE),
        (replace(HASH, max_entries=65), "replace", REPLACE),
        (replace(HASH, value_size=4), "replace", REPLACE),
        (replace(HASH, max_entries=65), "refuse", None),
        (replace(HASH, value_size=4), "migrate", None),
        (replace(HASH, type="lru_hash"), "migrate", None),
        (replace(HASH, flags=1), "migrate", None),
        (replace(HASH, key_size=8), "refuse", None),
    ],
)
def test_what_becomes_of_a_map(new: Layout, policy: str, decision: str | None) -> None:
    if decision is None:
        with pytest.raises(OverlayError, match="layout changed") as caught:
            decide_maps(observed_with(HASH), {"m": new}, policy)
        assert caught.value.target == f"{FOLDER}/m"
    else:
        assert decide_maps(observed_with(HASH), {"m": new}, policy) == {"m": decision}


def test_a_new_map_is_created_and_prog_arrays_are_not_copied() -> None:
    assert decide_maps(Observed(FOLDER), {"m": HASH}, "refuse") == {"m": CREATE}
    jumps = Layout("prog_array", 4, 4, 8, 0)
    with pytest.raises(OverlayError, match="migrate a map"):
        decide_maps(observed_with(jumps), {"m": replace(jumps, max_entries=9)}, "migrate")


def test_what_somebody_else_pinned_is_refused() -> None:
    observed = Observed(FOLDER, {"m": MapPin("m", 1, HASH), "p": ProgramPin("p", 2, "t", 8)})
    with pytest.raises(OverlayError, match="already pinned"):
        decide_maps(observed, {"m": HASH}, "replace")
    with pytest.raises(OverlayError, match="already pinned"):
        plan_object(observed, desired_of(1, ["p"]))
    with pytest.raises(OverlayError, match="not a record of ours"):
        Observed(FOLDER, {BUILD: OtherEntry(BUILD, "/usr/src")})
    with pytest.raises(OverlayError, match="listed twice"):
        plan_object(Observed(FOLDER), Desired(True, ("p", "p"), "0" * 64))


def test_a_temporary_name_that_no_record_knows_is_refused_before_anything_changes() -> None:
    """What is left of a killed build whose record somebody removed: the dry run says so too."""
    for taken in ("flows-new", "first-new"):
        observed = Observed(FOLDER, {taken: MapPin(taken, 7, HASH)})
        with pytest.raises(OverlayError, match=taken):
            decide_maps(observed, {"flows": HASH, "first": HASH}, "refuse")


def test_without_a_compiler_a_dry_run_still_predicts() -> None:
    plan = plan_object(Observed(FOLDER, None, ("bcc is missing.",)), Desired(True, ("p",), None))
    assert plan.operations
    assert plan.unmet == ("bcc is missing.",)
    assert plan.result["compiled"]
    assert plan.result["digest"] is None


names = st.text("abcXYZ_019", min_size=1, max_size=15)


named_ids = st.dictionaries(names, st.integers(1, 1 << 31))


@given(st.integers(0), named_ids, named_ids)
def test_record_round_trip(number: int, programs: dict[str, int], maps: dict[str, int]) -> None:
    record = Record(f"{number % (1 << 256):064x}", programs, maps)
    assert Record.decode(record.encode()) == record
    for wrong in (".", ",", ",x", ",x:", ",:1", ",1:x"):
        assert Record.decode(record.encode() + wrong) is None


def test_record_that_no_symbolic_link_can_hold() -> None:
    with pytest.raises(OverlayError, match="4095"):
        Record("0" * 64, {}, {f"a_rather_long_name_{n}": n for n in range(300)}).encode()


# --- bpffs ------------------------------------------------------------------------------------------------------------

MOUNTINFO = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
24 22 0:22 / /sys rw - sysfs sysfs rw
31 24 0:29 / /sys/fs/bpf rw,nosuid shared:9 master:2 - bpf bpf rw,mode=700
40 22 0:41 / /run/my\040bpf rw - bpf ebpf-overlay rw
""".strip()


def test_mounts_are_read() -> None:
    assert parse_mounts(MOUNTINFO)[2:] == [
        Mount("0:29", "/sys/fs/bpf", "bpf", "bpf"),
        Mount("0:41", "/run/my bpf", "bpf", "ebpf-overlay"),
    ]


@pytest.mark.parametrize(
    ("later", "device", "reason"),
    [
        ([], "0:29", None),
        ([Mount("0:50", "/sys/fs/bpf", "bpf", "bpf")], "0:50", "more than once"),
        ([Mount("0:50", "/sys/fs/bpf", "tmpfs", "tmpfs")], "0:50", "hidden by a later mount .tmpfs on /sys/fs/bpf"),
        ([Mount("0:50", "/sys", "sysfs", "sysfs")], "0:50", "hidden by a later mount .sysfs on /sys"),
        ([Mount("0:50", "/sys/fs/bpf/x", "tmpfs", "tmpfs")], "0:50", "hidden by a later mount .tmpfs on /sys/fs/bpf/x"),
        ([Mount("0:29", "/sys/fs/bpf", "bpf", "bpf")], "0:29", None),  # the same one over itself hides nothing
        ([Mount("0:50", "/elsewhere", "bpf", "bpf")], "0:29", None),
    ],
)
def test_hidden_pins_are_noticed(later: list[Mount], device: str, reason: str | None) -> None:
    mounts = parse_mounts(MOUNTINFO) + later
    if reason is None:
        mount = visible_bpffs("/sys/fs/bpf/x", mounts, device)
        assert mount is not None
        assert mount.point == "/sys/fs/bpf"
    else:
        with pytest.raises(OverlayError, match=reason):
            visible_bpffs("/sys/fs/bpf/x", mounts, device)


def test_no_bpffs_at_all() -> None:
    assert visible_bpffs("/tmp/x", parse_mounts(MOUNTINFO), "254:0") is None
    assert visible_bpffs("/sys/fs/bpfx", parse_mounts(MOUNTINFO), "0:22") is None


@pytest.mark.parametrize(
    ("path", "word"), [("x", "absolute"), ("/sys/fs/bpf", "itself"), ("/sys/fs/bpf/a/b.c", "dots")]
)
def test_folders_that_cannot_hold_pins(path: str, word: str) -> None:
    with pytest.raises(OverlayError, match=word):
        check_folder(path, "/sys/fs/bpf")
    check_folder("/run/with.dot/bpf/x", "/run/with.dot/bpf")
