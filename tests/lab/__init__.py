# SPDX-License-Identifier: GPL-3.0-or-later
"""A small cluster on one machine: Linux namespaces, real SSH, real netfilter, real packets.

``tests/lab/lab up`` builds it, ``tests/lab/lab down`` removes it; tests talk to it through :mod:`lab.api`.
"""
