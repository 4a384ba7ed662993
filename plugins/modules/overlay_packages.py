#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_packages
short_description: Install packages of the distribution, with a dry run that works on a bare node
version_added: "1.0.0"
description:
  - Installs packages with C(apt-get) or C(dnf) when they are missing. Never removes one, and leaves installed ones
    as they are.
  - The dry run asks only the database of installed packages. It needs neither package lists nor a Python library, so
    it is right on a node that was installed a minute ago, where M(ansible.builtin.apt) cannot run in check mode.
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
options:
  packages:
    description:
      - Names of packages, as the distribution of the node calls them.
      - Names of real packages only, without version or architecture.
    type: list
    elements: str
    required: true
  state:
    description: The packages are installed.
    type: str
    choices: [present]
    default: present
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
notes:
  - The package lists are fetched only when there are none, or when the installation fails with those that are there.
  - Recommended packages are not installed.
  - While somebody else works with the package manager, it waits for up to two minutes.
seealso:
  - module: ansible.builtin.package
  - module: ebpf.overlay.bpf_object
"""

EXAMPLES = r"""
- name: Install what compiles and attaches programs on Debian
  ebpf.overlay.overlay_packages:
    packages:
      - linux-libc-dev
      - python3-bpfcc
      - python3-pyroute2
"""

RETURN = r"""
installed:
  description: Packages that were missing and that this run installed, or in check mode would install.
  returned: success
  type: list
  elements: str
  sample: [python3-bpfcc]
present:
  description: Packages that were installed already.
  returned: success
  type: list
  elements: str
  sample: [linux-libc-dev, python3-pyroute2]
"""

import glob
import os
import re
import time
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import converge, run

APT_LISTS = "/var/lib/apt/lists/*_Packages*"
# apt-get takes "name-" as an order to remove, so a name must not end in a dash. Characters: Debian policy 5.6.1.
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9+._-]*[A-Za-z0-9+._])?")
ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",
    # Ubuntu would otherwise restart services of the node after an installation.
    "NEEDRESTART_MODE": "l",
}
OUTPUT_LINES = 8
# What apt says when somebody else works with the lists or the archives. Its own timeout is for dpkg's lock only.
LOCKED = ("Could not get lock", "Unable to lock")
LOCK_TIMEOUT = 120  # seconds
LOCK_PAUSE = 2.0


@dataclass(frozen=True)
class Install:
    """Install these packages in one transaction."""

    packages: tuple[str, ...]


@dataclass(frozen=True)
class Apt:
    """Debian and its derivatives."""

    module: Any

    def installed(self, packages: list[str]) -> set[str]:
        # Ends with 1 when one of the names is unknown, and prints the others all the same.
        query = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package}\n", "--", *packages]
        output = self.module.run_command(query, environ_update=ENVIRONMENT)[1]
        lines = (line.split() for line in output.splitlines())
        return {words[1] for words in lines if len(words) == 2 and words[0] == "installed"}

    def install(self, packages: tuple[str, ...]) -> None:
        command = ["apt-get", "install", "--yes", "--no-install-recommends", "--no-remove", "-qq"]
        command += ["-o", f"DPkg::Lock::Timeout={LOCK_TIMEOUT}", "-o", "Dpkg::Use-Pty=0", "--", *packages]
        output = ""
        updated = not glob.glob(APT_LISTS)
        if updated:
            output = self._update()
        code, text = self._run(command)
        if code and not updated:
            output = self._update()
            code, text = self._run(command)
        if code:
            raise not_installed("apt-get", packages, output + text)

    def _update(self) -> str:
        # One broken source among several must not keep a package of another one away: installing decides.
        code, text = self._run(["apt-get", "update", "-qq"])
        return text if code else ""

    def _run(self, command: list[str]) -> tuple[int, str]:
        """Code and output; tried again while somebody else has locked what it needs."""
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            code, output, errors = self.module.run_command(command, environ_update=ENVIRONMENT)
            text = output + errors
            if not code or not any(words in text for words in LOCKED) or time.monotonic() >= deadline:
                return code, text
            time.sleep(LOCK_PAUSE)


@dataclass(frozen=True)
class Dnf:
    """Fedora, RHEL and their derivatives."""

    module: Any

    def installed(self, packages: list[str]) -> set[str]:
        def has(name: str) -> bool:
            query = ["rpm", "--query", "--whatprovides", "--", name]
            return bool(self.module.run_command(query, environ_update=ENVIRONMENT)[0] == 0)

        return {name for name in packages if has(name)}

    def install(self, packages: tuple[str, ...]) -> None:
        command = ["dnf", "install", "--assumeyes", "--quiet", "--setopt=install_weak_deps=False", *packages]
        code, output, errors = self.module.run_command(command, environ_update=ENVIRONMENT)
        if code:
            raise not_installed("dnf", packages, output + errors)


def not_installed(tool: str, packages: tuple[str, ...], output: str) -> OverlayError:
    last = "; ".join(line.strip() for line in output.strip().splitlines()[-OUTPUT_LINES:] if line.strip())
    names = " ".join(packages)
    return OverlayError(
        "install packages",
        f"{names} with {tool}",
        last.rstrip(".") or f"{tool} failed without a word",
        f"Check the node's package sources and try '{tool} install {names}' there.",
    )


def package_manager(module: AnsibleModule) -> Apt | Dnf:
    """The node's own package manager. Raises OverlayError where there is none that this module knows."""
    if module.get_bin_path("dpkg-query") and module.get_bin_path("apt-get"):
        return Apt(module)
    if module.get_bin_path("rpm") and module.get_bin_path("dnf"):
        return Dnf(module)
    raise OverlayError(
        "install packages",
        ", ".join(module.params["packages"]),
        "neither dpkg-query and apt-get nor rpm and dnf are in PATH",
        "Install them by the means of this distribution, into the image of the nodes if they have one; then run again.",
    )


def plan_packages(wanted: list[str], installed: set[str]) -> Plan:
    """What is missing, in the order in which it was asked for. Pure."""
    names = list(dict.fromkeys(wanted))
    missing = tuple(name for name in names if name not in installed)
    return Plan(
        operations=(Install(missing),) if missing else (),
        before="".join(f"{name} {'absent' if name in missing else 'installed'}\n" for name in names),
        after="".join(f"{name} installed\n" for name in names),
        result={"installed": list(missing), "present": [name for name in names if name not in missing]},
    )


def check_names(packages: list[str]) -> None:
    for name in packages:
        if not NAME.fullmatch(name):
            raise OverlayError(
                "install packages",
                f"packages: {name!r}",
                "this is not the name of a package",
                "Use plain names, without options, versions or architectures.",
            )


def check_root(operations: tuple[Any, ...]) -> None:
    if operations and os.geteuid() != 0:
        names = ", ".join(name for operation in operations for name in operation.packages)
        raise OverlayError("install packages", names, "EPERM (not root)", "Run the task with 'become: true'.")


def install_missing(module: AnsibleModule) -> dict[str, Any]:
    wanted = module.params["packages"]
    check_names(wanted)
    manager = package_manager(module) if wanted else Apt(module)  # an image that brings its own has none to ask

    def observe() -> set[str]:
        return manager.installed(wanted) if wanted else set()

    def plan(installed: set[str]) -> Plan:
        planned = plan_packages(wanted, installed)
        check_root(planned.operations)
        return planned

    def apply(operations: tuple[Install, ...]) -> None:
        for operation in operations:
            manager.install(operation.packages)

    planned = converge(module, observe, plan, apply)
    return {"changed": bool(planned.operations), "diff": planned.diff, **planned.result}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["present"], "default": "present"},
        },
        supports_check_mode=True,
    )
    run(module, lambda: install_missing(module))


if __name__ == "__main__":
    main()
