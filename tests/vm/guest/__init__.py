# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs in a virtual machine of the matrix. Python 3.9 and the system's own packages are all that there is."""
