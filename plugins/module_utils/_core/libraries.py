# SPDX-License-Identifier: GPL-3.0-or-later
"""Which libraries this interpreter has: bcc and pyroute2 come from the distribution, for its own interpreter alone."""

from __future__ import annotations

import importlib.util
import os


def importable(library: str) -> bool:
    """Whether this interpreter could import ``library``, without importing it."""
    spec = importlib.util.find_spec(library)
    if spec is None or library != "bcc":
        return spec is not None
    # The package of that name on the Python package index is something else, and has no libbcc.py.
    return any(os.path.exists(os.path.join(folder, "libbcc.py")) for folder in spec.submodule_search_locations or ())
