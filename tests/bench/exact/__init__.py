# SPDX-License-Identifier: GPL-3.0-or-later
"""Instructions per round trip, connection and megabyte, in virtual machines; ``make bench-exact``."""
