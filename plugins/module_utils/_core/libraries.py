# SPDX-License-Identifier: GPL-3.0-or-later
"""Which libraries and programs this process finds. bcc and pyroute2 come from the distribution, for its interpreter."""

from __future__ import annotations

import importlib.util
import os

SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin")


def importable(library: str) -> bool:
    """Whether this interpreter could import ``library``, without importing it."""
    spec = importlib.util.find_spec(library)
    if spec is None or library != "bcc":
        return spec is not None
    # The package of that name on the Python package index is something else, and has no libbcc.py.
    return any(os.path.exists(os.path.join(folder, "libbcc.py")) for folder in spec.submodule_search_locations or ())


def complete_path(path: str) -> str:
    """With the folders of tc, nft, iptables and what dpkg calls, which root lacks who came by su(1)."""
    folders = [folder for folder in path.split(os.pathsep) if folder]
    return os.pathsep.join([*folders, *(folder for folder in SYSTEM_FOLDERS if folder not in folders)])
