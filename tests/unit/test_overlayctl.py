# SPDX-License-Identifier: GPL-3.0-or-later
"""overlayctl without a node: arguments, documents, which flows are meant, which rule decides, what is kept."""

from __future__ import annotations

import base64
import ipaddress
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import converge
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.reasons import REASONS
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import log, model, way_back
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.calls import KINDS
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.command import Command, Observed, as_wanted
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.model import History
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.stored_runtime import FORMAT_FILE
from ansible_collections.ebpf.overlay.plugins.module_utils._node import (
    admission,
    documents,
    flow_states,
    live,
    main,
    text,
)
from ansible_collections.ebpf.overlay.plugins.module_utils._node.arguments import COMMANDS, EXIT_CODES, check, parser
from ansible_collections.ebpf.overlay.plugins.module_utils._node.explain import parse_end
from ansible_collections.ebpf.overlay.plugins.module_utils._node.live import connection_of, describe

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/node.md").read_text(encoding="utf-8")
NOW, SECOND = 10**9, 250


def flow(**changes: Any) -> dict[str, Any]:
    way = {"owed": 0, "out": "cali1", "proven": 5, "asked": 7}
    return {
        "workload": "10.244.1.11", "workload_port": 8080, "remote": "198.18.0.12", "remote_port": 40312,
        "seen": NOW - 10, "ended": 0, "trial": "proven", "opened_by": "uplink", "ways[0]": way, "ways[1]": way,
        **changes,
    }  # fmt: skip


# --- arguments and documents ------------------------------------------------------------------------------------------


def test_every_command_is_answered_in_words_and_in_the_documents() -> None:
    made = parser()
    commands = documents.commands(made)
    assert set(commands) == set(COMMANDS)
    printed = {"man", "completion"}
    assert set(main.ONCE) | {"top"} == set(COMMANDS) - printed
    assert set(text.WORDS) == set(COMMANDS) - printed
    page, script = documents.man(made), documents.completion(made)
    for name, command in commands.items():
        options = {option for action in command._actions for option in action.option_strings} - {"-h", "--help"}
        line = re.search(rf"^    +{name}\) words=\"(.*)\" ;;$", script, re.M)
        assert line is not None
        assert set(line[1].split()) >= options
        for option in options:
            assert option.replace("-", "\\-") in page, (name, option)
        assert f"overlayctl {name}" in DOCUMENT
    assert not re.search(r"^[^.\n].*\\[^-&efI]", page, re.M)


def test_the_document_has_the_exit_codes_and_the_states() -> None:
    for number in EXIT_CODES:
        assert f"\n| {number} | " in DOCUMENT
    for state in flow_states.STATES:
        assert f"\n| `{state}` | {flow_states.MEANINGS[state]}" in DOCUMENT


@pytest.mark.parametrize(
    "line",
    [
        "",
        "cut",
        "suspend --for 5",
        "suspend --port 0",
        "suspend --port 80 --for 0",
        "flows --state quick",
        "top --count -1",
    ],
)
def test_wrong_arguments_end_with_2(line: str) -> None:
    made = parser()
    with pytest.raises(SystemExit) as ended:
        check(made, made.parse_args(line.split()))
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ("10.0.0.1", ("10.0.0.1", None)),
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("fd00::1", ("fd00::1", None)),
        ("[fd00::1]:80", ("fd00::1", 80)),
        ("[fd00::1]", ("fd00::1", None)),
    ],
)
def test_an_end_with_and_without_its_port(given_: str, wanted: tuple[str, int | None]) -> None:
    assert parse_end(given_) == wanted


@pytest.mark.parametrize("wrong", ["10.0.0", "10.0.0.1:http", "name", "", "[fd00::1:80"])
def test_what_is_no_end_is_refused(wrong: str) -> None:
    with pytest.raises(OverlayError, match="Give an address"):
        parse_end(wrong)


# --- flows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "port", "matches"),
    [
        (None, None, True),
        ("10.244.1.0/24", None, True),
        ("198.18.0.12", 40312, True),
        ("198.18.0.12", 8080, False),  # the port of the other end
        ("10.244.1.11", 8080, True),
        ("fd00::/8", None, False),
        (None, 40312, True),
        (None, 80, False),
    ],
)
def test_flows_are_found_by_one_of_their_ends(address: str | None, port: int | None, matches: bool) -> None:
    assert flow_states.select(address, port).matches(flow()) is matches


def test_what_is_no_prefix_is_refused() -> None:
    with pytest.raises(OverlayError, match="a prefix"):
        flow_states.select("10.0.0.0/33", None)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "fast"),
        ({"trial": "running"}, "trying"),
        ({"trial": "none"}, "waiting"),
        ({"trial": "broken"}, "waiting"),
        ({"ended": 1}, "ending"),
        ({"ways[1]": {"owed": 2, "out": 1}}, "suspended"),
        ({"seen": NOW + 1}, "suspended"),
    ],
)
def test_the_state_of_a_flow(changes: dict[str, Any], state: str) -> None:
    assert flow_states.state_of(flow(**changes), NOW) == state


@given(seconds=st.integers(1, 86400))
def test_a_suspended_flow_is_unknown_to_the_datapath_until_then_and_known_after_that(seconds: int) -> None:
    until = NOW + seconds * SECOND
    found = flow_states.suspended(flow(), until)
    idle = 86400 * SECOND

    def known(now: int) -> bool:
        """As ``look_up()`` has it, in unsigned numbers."""
        return (now - found["seen"]) % 2**64 <= idle

    assert not known(NOW)
    assert not known(until - 1)
    assert known(until)
    assert [found[way][name] for way in ("ways[0]", "ways[1]") for name in ("asked", "proven")] == [0] * 4
    told = flow_states.told(found, NOW, SECOND)
    assert (told["state"], told["suspended_for"], told["heartbeat_ago"]) == ("suspended", seconds, None)


def test_a_connection_by_its_ends() -> None:
    packed = ipaddress.ip_address("10.244.1.11").packed, ipaddress.ip_address("198.18.0.12").packed
    assert connection_of(flow()) == {(packed[0], 8080), (packed[1], 40312)}
    assert describe(flow(remote="fd00::1")) == "10.244.1.11:8080 <-> [fd00::1]:40312"


# --- the rule that decides --------------------------------------------------------------------------------------------

ELIGIBLE = {"mode": "on", "services": (True, False), "server": "cali1", "peer": "peer"}


@pytest.mark.parametrize(
    ("changes", "decides"),
    [
        ({}, "admitted"),
        ({"mode": None}, "absent"),
        ({"mode": "off"}, "off"),
        ({"mode": "drain"}, "draining"),
        ({"lease_over": True}, "lease_expired"),
        ({"services": (False, False)}, "not_service"),
        ({"services": (False, True)}, "not_service"),
        ({"server": None}, "not_workload"),
        ({"client": "cali2"}, "same_node"),
        ({"client": "cali2", "server": None}, "admitted"),
        ({"peer": None}, "not_peer"),
        ({"peer": "own"}, "host_address"),
        ({"carried": False}, "interface_gone"),
    ],
)
def test_the_rule_that_decides(changes: dict[str, Any], decides: str) -> None:
    found = admission.walk(admission.Seen(**{**ELIGIBLE, **changes}), "198.18.0.12", "10.244.1.11", 8080)
    assert found["decides"] == decides
    assert found["eligible"] is (decides == "admitted")
    assert [step["holds"] for step in found["steps"]] == [True] * (len(found["steps"]) - 1) + [found["eligible"]]
    assert decides in {"absent", "off", *(name for name, _meaning in REASONS.values())}
    assert text.explain({**found, "meaning": "…", "flows": []})


# --- the log ----------------------------------------------------------------------------------------------------------


def test_the_log_keeps_the_latest(tmp_path: Path) -> None:
    for number in range(2000):
        log.note(f"did the thing with number {number:04}", str(tmp_path), generation=number, attempt="")
    assert (tmp_path / log.NAME).stat().st_size <= log.LARGEST + 200
    found = log.read(3, str(tmp_path))
    assert [entry["generation"] for entry in found] == [1997, 1998, 1999]
    assert set(found[0]) == {"when", "user", "what", "generation"}
    assert len(log.read(10**6, str(tmp_path))) > 400


def test_the_log_stops_nobody(tmp_path: Path) -> None:
    log.note("did something", str(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()
    assert log.read(5, str(tmp_path / "absent")) == []
    (tmp_path / log.NAME).write_text('{"what": "done"}\n{"what": "cut o', encoding="utf-8")
    assert log.read(5, str(tmp_path)) == [{"what": "done"}]


# --- the file on the node ---------------------------------------------------------------------------------------------


def archive(path: Path, more: str = "") -> bytes:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(FORMAT_FILE, "2")
        packed.writestr("more", more)
    return path.read_bytes()


def test_the_command_is_written_replaced_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "sbin/overlayctl"
    for code in (archive(tmp_path / "one.zip"), archive(tmp_path / "two.zip", "more")):
        wanted = Command({"state": "present", "runtime": base64.b64encode(code).decode()}, str(path))
        assert converge(wanted, True, print).operations
        assert converge(wanted, False, print).operations
        assert not converge(wanted, False, print).operations
        assert path.read_bytes().startswith(b"#!/")
        assert path.read_bytes().endswith(b"\n" + code)
        assert path.stat().st_mode & 0o777 == 0o755
        assert as_wanted(wanted.wanted, str(path))
    absent = Command({"state": "absent", "runtime": None}, str(path))
    assert converge(absent, False, print).before.startswith("overlayctl ")
    assert not path.exists()
    assert not converge(absent, False, print).operations


def test_a_file_of_somebody_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "overlayctl"
    path.write_text("#!/bin/sh\n", encoding="utf-8")
    assert not converge(Command({"state": "absent", "runtime": None}, str(path)), False, print).operations
    present = Command({"state": "present", "runtime": base64.b64encode(b"code").decode()}, str(path))
    with pytest.raises(OverlayError, match="not of this collection"):
        converge(present, False, print)
    assert path.read_text(encoding="utf-8") == "#!/bin/sh\n"


def test_a_read_only_file_system_is_told_and_nothing_else(tmp_path: Path) -> None:
    wanted = Command({"state": "present", "runtime": "Y29kZQ=="}, str(tmp_path / "overlayctl"))
    planned = wanted.plan(Observed(read_only=True))
    assert (planned.operations, planned.before, planned.after) == ((), "", "")
    assert "read-only" in planned.warnings[0]


def test_generation_0_removes_it_and_no_other_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.COMMAND_GONE in model.calls_to(History(), 0, {})
    made: list[model.Call] = []
    monkeypatch.setattr(way_back, "_make", lambda calls: made.extend(calls) or [])  # type: ignore[func-returns-value]
    way_back.leave({"remove": True, "kept": [], "calls": []})
    assert [*model.REMOVAL] == made[1:], "also on the way to a generation of another release"
    assert model.COMMAND_GONE not in made
    assert model.COMMAND_GONE["module"] in KINDS
    assert model.undo([{"module": "overlay_ctl", "arguments": {}}]) == ()


def test_answers_are_json() -> None:
    assert json.loads(json.dumps(admission.walk(admission.Seen(None), "a", "b", 1)))["decides"] == "absent"


def test_flows_that_begin_meanwhile_are_not_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [(b"one", flow())]
    monkeypatch.setattr(live, "flows", lambda _selection: list(there))
    wanted = live.Suspended(flow_states.select(None, 8080), NOW + 100)
    assert [operation.key for operation in wanted.plan(wanted.observe()).operations] == [b"one"]
    there[:] = [(b"one", flow(seen=NOW + 100)), (b"two", flow())]
    assert not wanted.plan(wanted.observe()).operations
    cut = live.Cut(flow_states.select(None, 8080))
    assert len(cut.plan(cut.observe()).operations) == 3
    there[:] = [(b"three", flow())]
    assert not cut.plan(cut.observe()).operations
