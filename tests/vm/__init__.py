# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual machines with the kernels, compilers and libraries of several Debian releases, and the checks in them."""
