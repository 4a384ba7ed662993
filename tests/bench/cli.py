# SPDX-License-Identifier: GPL-3.0-or-later
import os, time, json, statistics
from . import objects, topology, roundtrip
def main():
    t=time.time()
    peer, neigh, original = objects.overlay(OVERLAY_REDIRECT=2, OVERLAY_CHECK_MTU=1), objects.overlay(OVERLAY_REDIRECT=1, OVERLAY_CHECK_MTU=1), objects.original()
    print("build", time.time()-t); t=time.time()
    with topology.network():
        topology.fill_original(original)
        for o in (peer, neigh): topology.fill_overlay(o)
        print("net", time.time()-t); t=time.time()
        found = roundtrip.measure(original, neigh, peer, int(os.environ.get("ROUNDS","5")), int(os.environ.get("TRIPS","10000")))
        print("rr", time.time()-t)
        for n,v in found.items(): print(f"{n:14} {statistics.median(v)/1000:8.2f} {min(v)/1000:8.2f} {max(v)/1000:8.2f}", v)
        print(json.dumps(roundtrip.figures(found), indent=1))
