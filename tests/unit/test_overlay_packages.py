# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages: what is planned, and which commands carry it out, on a node whose package manager is played."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import packages as overlay_packages

names = st.lists(st.sampled_from(["bcc", "g++", "libc6", "make", "python3-bpfcc"]), max_size=8)


class Node:
    """Stands in for AnsibleModule and for the package manager of a node."""

    def __init__(self, packages: list[str], tools: tuple[str, ...], installed: set[str], offered: set[str]) -> None:
        self.params = {"packages": packages, "state": "present"}
        self.check_mode = False
        self.tools = tools
        self.installed = installed
        self.offered = offered  # what the package lists know now
        self.after_update: set[str] = set()
        self.update_code = 0
        self.removed: set[str] = set()  # gone, but dpkg still remembers their configuration
        self.commands: list[list[str]] = []

    def find(self, name: str) -> str | None:
        return f"/usr/bin/{name}" if name in self.tools else None

    def warn(self, warning: str) -> None:
        raise AssertionError(warning)

    def run(self, command: list[str]) -> tuple[int, str, str]:
        self.commands.append(command)
        words = [word for word in command[1:] if word in self.installed | self.params_set()]
        if command[0] == "dpkg-query":
            known = [word for word in words if word in self.installed]
            lines = "".join(f"installed {word}\n" for word in known)
            lines += "".join(f"config-files {word}\n" for word in words if word in self.removed)
            return (0 if known == words else 1), lines, "dpkg-query: no packages found"
        if command[0] == "rpm":
            return (0 if words and words[0] in self.installed else 1), "", ""
        if command[:2] == ["apt-get", "update"]:
            self.offered |= self.after_update
            return self.update_code, "", "E: The repository is not signed.\n" if self.update_code else ""
        unknown = [word for word in words if word not in self.offered]
        if unknown:
            return 100, "Reading package lists...\n", f"E: Unable to locate package {unknown[0]}\n"
        self.installed |= set(words)
        self.removed -= set(words)
        return 0, "", ""

    def params_set(self) -> set[str]:
        return set(self.params["packages"])

    def ran(self, *start: str) -> list[list[str]]:
        return [command for command in self.commands if command[: len(start)] == list(start)]


def debian(packages: list[str], installed: set[str] | None = None, offered: set[str] | None = None) -> Any:
    return Node(packages, ("dpkg-query", "apt-get"), installed or set(), set(packages) if offered is None else offered)


def install_missing(node: Any) -> dict[str, Any]:
    return overlay_packages.ensure(node.params, node.check_mode, node.warn, node)


@pytest.fixture(autouse=True)
def lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """A root shell on a node whose package lists were fetched once."""
    monkeypatch.setattr(overlay_packages, "APT_LISTS", __file__)
    monkeypatch.setattr(overlay_packages.os, "geteuid", lambda: 0)


@given(names, st.sets(st.sampled_from(["bcc", "g++", "make"])))
def test_plan_installs_what_is_missing_once_and_then_nothing(wanted: list[str], installed: set[str]) -> None:
    planned = overlay_packages.plan_packages(wanted, installed)
    done = installed | {name for operation in planned.operations for name in operation.packages}
    assert done == installed | set(wanted)
    again = overlay_packages.plan_packages(wanted, done)
    assert not again.operations
    assert again.before == again.after == planned.after
    assert (planned.before != planned.after) == bool(planned.operations)


def test_only_missing_packages_are_installed_and_none_is_removed() -> None:
    node = debian(["make", "python3-bpfcc"], installed={"make"})
    result = install_missing(node)
    assert result["changed"]
    assert (result["installed"], result["present"]) == (["python3-bpfcc"], ["make"])
    (install,) = node.ran("apt-get")
    assert install[-2:] == ["--", "python3-bpfcc"]
    assert "--no-remove" in install


def test_a_package_of_which_only_configuration_is_left_is_missing() -> None:
    node = debian(["make"])
    node.removed = {"make"}
    assert install_missing(node)["installed"] == ["make"]


def test_nothing_missing_only_asks() -> None:
    node = debian(["make"], installed={"make"})
    assert not install_missing(node)["changed"]
    assert [command[0] for command in node.commands] == ["dpkg-query"]


def test_dry_run_only_asks_and_predicts() -> None:
    node = debian(["python3-bpfcc"], offered=set())
    node.check_mode = True
    result = install_missing(node)
    assert result["changed"]
    assert result["diff"] == {"before": "python3-bpfcc absent\n", "after": "python3-bpfcc installed\n"}
    assert [command[0] for command in node.commands] == ["dpkg-query"]


def test_lists_are_fetched_first_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_packages, "APT_LISTS", __file__ + ".absent")
    node = debian(["make"], offered=set())
    node.after_update = {"make"}
    install_missing(node)
    assert [command[1] for command in node.ran("apt-get")] == ["update", "install"]


def test_lists_are_fetched_when_they_do_not_know_the_package() -> None:
    node = debian(["make"], offered=set())
    node.after_update = {"make"}
    install_missing(node)
    assert [command[1] for command in node.ran("apt-get")] == ["install", "update", "install"]


def test_a_broken_source_does_not_keep_away_a_package_of_another() -> None:
    node = debian(["make"], offered=set())
    node.after_update, node.update_code = {"make"}, 100
    assert install_missing(node)["installed"] == ["make"]


def test_a_package_that_nobody_offers_is_named_with_the_words_of_apt() -> None:
    node = debian(["python3-bpfcc"], offered=set())
    node.update_code = 100
    with pytest.raises(OverlayError) as caught:
        install_missing(node)
    parts = caught.value.parts()
    assert "Unable to locate package python3-bpfcc" in str(parts["reason"])
    assert "not signed" in str(parts["reason"])
    assert "python3-bpfcc" in str(parts["target"])
    assert "apt-get install python3-bpfcc" in str(parts["advice"])


def test_rpm_family() -> None:
    node: Any = Node(["make", "python3-bcc"], ("rpm", "dnf"), {"make"}, {"python3-bcc"})
    assert install_missing(node)["installed"] == ["python3-bcc"]
    (install,) = node.ran("dnf")
    assert install[-1] == "python3-bcc"


def test_unknown_distribution() -> None:
    node: Any = Node(["make"], (), set(), set())
    with pytest.raises(OverlayError, match="neither dpkg-query"):
        install_missing(node)


@pytest.mark.parametrize("name", ["--purge", "make-", "make=1.0", "make:amd64", "", "a b", "-"])
def test_what_is_no_name_never_reaches_the_package_manager(name: str) -> None:
    node = debian([name])
    with pytest.raises(OverlayError, match="not the name"):
        install_missing(node)
    assert not node.commands


@pytest.mark.parametrize("name", ["g++", "libstdc++6", "python3.11", "bcc", "0ad", "x_y"])
def test_names_of_packages(name: str) -> None:
    overlay_packages.check_names([name])


@pytest.mark.parametrize("check_mode", [True, False])
def test_without_root_it_says_so_before_it_starts(monkeypatch: pytest.MonkeyPatch, check_mode: bool) -> None:
    monkeypatch.setattr(overlay_packages.os, "geteuid", lambda: 1000)
    node = debian(["make"])
    node.check_mode = check_mode
    with pytest.raises(OverlayError, match="become"):
        install_missing(node)
    assert not node.ran("apt-get")
