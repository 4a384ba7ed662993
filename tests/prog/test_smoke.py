from prog.packets import *
def test_smoke(overlay):
    r = overlay.uplink(tcp("10.244.2.10","10.244.1.10",40000,8080,SYN))
    print(r)
    r = overlay.workload(tcp("10.244.1.10","10.244.2.10",8080,40000,SYN|ACK))
    print(r)
    r = overlay.uplink(tcp("10.244.2.10","10.244.1.10",40000,8080,ACK))
    print(r, overlay.entries("flows"), overlay.entries("transient"))
    print(overlay.object.verified("from_uplink"), overlay.object.verified("from_workload"), overlay.object.compiler)
    assert 0
