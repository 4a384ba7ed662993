# SPDX-License-Identifier: GPL-3.0-or-later
"""The words of errors about hooks: what was being done, and what to do next."""

from __future__ import annotations

import errno

from . import operations as do

PRIVILEGES = "Run as root (become: true); CAP_NET_ADMIN and CAP_BPF (CAP_SYS_ADMIN before kernel 5.8) are needed."
DOING = {
    do.RecordQdisc: "note a qdisc as ours",
    do.AddClsact: "add a clsact qdisc",
    do.DeleteClsact: "delete a clsact qdisc",
    do.ForgetQdisc: "remove the note about a qdisc",
    do.AddFilter: "attach a filter",
    do.ReplaceFilter: "replace a filter",
    do.DeleteFilter: "delete a filter",
    do.CreateLink: "attach a TCX link",
    do.UpdateLink: "update a TCX link",
    do.RemoveLink: "remove a TCX link",
    do.RemovePin: "remove a pin",
    do.RemoveDirectory: "remove an empty folder",
}
ADVICE = {
    errno.EPERM: PRIVILEGES,
    errno.EACCES: PRIVILEGES,
    errno.ENODEV: "The interface was removed meanwhile; all others were taken care of. Run again without it.",
    errno.EEXIST: "Somebody else took this place meanwhile; tc_bpf_info lists what is there. Choose another.",
    errno.ENOENT: "Somebody else removed it meanwhile; run again.",
    errno.ESTALE: "Somebody else changed this hook's TCX links meanwhile; run again.",
    errno.ENOSPC: "A hook takes at most 64 TCX links; remove some.",
}
