# SPDX-License-Identifier: GPL-3.0-or-later
"""Values as people write them and the bytes in a map."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.codec import (
    BLOCK,
    AsWritten,
    Codec,
    encode_entries,
    in_blocks,
)

INTERFACES = {"lo": 1, "ens47f1": 2, "cali1": 7}
ipv4 = st.ip_addresses(v=4).map(str)


def plain(address: Any) -> bool:
    """Not an IPv4 address in disguise, which has two ways to be written."""
    return int(address) >> 32 not in (0, 0xFFFF)


def network(address: Any, length: int) -> str:
    return str(ipaddress.ip_network((address, length), strict=False))


ipv6 = st.ip_addresses(v=6).filter(plain).map(str) | st.just("::")
networks = st.one_of(
    st.builds(network, st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds(network, st.ip_addresses(v=6, network="fd00::/8"), st.integers(0, 128)),
)


def unsigned(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << bits) - 1)


SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "ipv4": ipv4,
    "ipv6": ipv6,
    "ip": ipv4 | ipv6,
    "cidr": networks,
    "mac": st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":")),
    "ifindex": st.sampled_from(["lo", "ens47f1", "cali1", 0, 3, 99]),
    "bytes:5": st.binary(min_size=5, max_size=5).map(bytes.hex),
    **{f"u{bits}": unsigned(bits) for bits in (8, 16, 32, 64)},
    **{f"s{bits}": st.integers(-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"be{bits}": unsigned(bits) for bits in (16, 32, 64)},
}
LABELS = {"type": "u32", "labels": ["off", "drain", "on"]}


def written(value: str) -> str:
    """Two ways of writing one address are one value."""
    address, slash, length = value.partition("/")
    return str(ipaddress.ip_address(address)) + slash + length


@st.composite
def structs(draw: st.DrawFn, depth: int = 2) -> tuple[Any, st.SearchStrategy[Any]]:
    """A schema and the values that it takes."""
    fields: list[Any] = []
    values = {}
    for number in range(draw(st.integers(1, 4))):
        if draw(st.booleans()) and fields:
            fields.append({"type": f"pad:{draw(st.integers(1, 5))}"})
        name = f"f{number}"
        if depth and draw(st.integers(0, 4)) == 0:
            inner, strategy = draw(structs(depth=depth - 1))
        else:
            inner = draw(st.sampled_from(sorted(SCALARS)))
            strategy = SCALARS[inner]
        fields.append({"name": name, "type": inner})
        values[name] = strategy
    return fields, st.fixed_dictionaries(values)


def normal(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: normal(inner) for name, inner in value.items()}
    try:
        return written(value)
    except (ValueError, AttributeError):
        return value


@pytest.mark.parametrize("schema", sorted(SCALARS))
@given(data=st.data())
def test_every_scalar_survives_the_round_trip(schema: str, data: st.DataObject) -> None:
    codec = Codec(schema, "value", None, INTERFACES)
    value = data.draw(SCALARS[schema])
    raw = codec.encode(value)
    assert len(raw) == codec.size
    assert normal(codec.decode(raw)) == normal(value)
    assert codec.encode(codec.decode(raw)) == raw


@given(data=st.data())
def test_every_struct_survives_the_round_trip_one_by_one_and_in_columns(data: st.DataObject) -> None:
    schema, strategy = data.draw(structs())
    codec = Codec(schema, "value", None, INTERFACES)
    values = data.draw(st.lists(strategy, min_size=1, max_size=5))
    one_by_one = [codec.encode(value) for value in values]
    assert codec.encode_column(values) == one_by_one
    assert [normal(codec.decode(raw)) for raw in one_by_one] == [normal(value) for value in values]


@given(st.lists(st.tuples(ipv4 | ipv6, unsigned(16), st.booleans()), unique_by=lambda entry: written(entry[0])))
def test_entries_in_blocks_are_the_entries_one_by_one(rows: list[tuple[str, int, bool]]) -> None:
    key, value = Codec("ip", "key"), Codec([{"name": "port", "type": "be16"}, {"name": "n", "type": "u16"}], "value")
    # Numbers as text are right too, and take the slow way.
    entries = [{"key": a, "value": {"port": str(n) if text else n, "n": n}} for a, n, text in rows]
    expected = {key.encode(e["key"]): value.encode(e["value"]) for e in entries}
    assert encode_entries(in_blocks(entries), key, value) == expected
    assert encode_entries((entries[i : i + 2] for i in range(0, len(entries), 2)), key, value) == expected
    assert list(encode_entries(in_blocks(entries), key, None)) == list(expected)


@pytest.mark.parametrize(
    ("schema", "value", "raw"),
    [
        ("ipv4", "10.244.2.5", bytes([10, 244, 2, 5])),
        ("ip", "10.244.2.5", bytes(10) + b"\xff\xff" + bytes([10, 244, 2, 5])),
        ("ip", "::ffff:10.244.2.5", bytes(10) + b"\xff\xff" + bytes([10, 244, 2, 5])),
        ("cidr", "10.244.2.0/24", struct.pack("=I", 120) + bytes(10) + b"\xff\xff" + bytes([10, 244, 2, 0])),
        ("cidr", "0.0.0.0/0", struct.pack("=I", 96) + bytes(10) + b"\xff\xff" + bytes(4)),
        ("cidr", "::/0", bytes(20)),
        ("cidr", "fd00::1", struct.pack("=I", 128) + b"\xfd" + bytes(14) + b"\x01"),
        ("mac", "AA-bb-cc-dd-ee-ff", bytes.fromhex("aabbccddeeff")),
        ("u16", "0x1f90", struct.pack("=H", 8080)),
        ("u8", True, b"\x01"),
        ("be16", 8080, b"\x1f\x90"),
        ("be32", "1", b"\0\0\0\x01"),
        ("ifindex", "cali1", struct.pack("=I", 7)),
        ("ifindex", "12", struct.pack("=I", 12)),
        ("bytes:2", "0x0aff", b"\x0a\xff"),
        (LABELS, "on", struct.pack("=I", 2)),
        (LABELS, 1, struct.pack("=I", 1)),
        (
            [{"name": "a", "type": "u8"}, {"type": "pad:3"}, {"name": "b", "type": "be32"}],
            {"a": 1, "b": 2},
            b"\1\0\0\0\0\0\0\2",
        ),
    ],
)
def test_known_bytes(schema: Any, value: Any, raw: bytes) -> None:
    codec = Codec(schema, "value", None, INTERFACES)
    assert codec.encode(value) == raw
    assert codec.encode(codec.decode(raw)) == raw


def test_bytes_take_the_room_that_is_left() -> None:
    assert Codec("bytes", "value", 12).size == 12
    assert Codec([{"name": "n", "type": "u32"}, {"name": "rest", "type": "bytes"}], "value", 12).size == 12
    with pytest.raises(OverlayError, match="needs a size"):
        Codec("bytes", "value")


def test_labels_are_shown_and_unknown_numbers_stay_numbers() -> None:
    codec = Codec(LABELS, "value")
    assert [codec.decode(struct.pack("=I", n)) for n in (0, 2, 3)] == ["off", "on", 3]


def test_one_line_for_people() -> None:
    schema = [{"name": "ifindex", "type": "ifindex"}, {"name": "to", "type": [{"name": "ip", "type": "ip"}]}]
    codec = Codec(schema, "value", None, INTERFACES)
    assert codec.show(codec.encode({"ifindex": 7, "to": {"ip": "10.0.0.1"}})) == "ifindex=cali1, to.ip=10.0.0.1"


PAIR = [{"name": "ifindex", "type": "ifindex"}, {"name": "mtu", "type": "u16"}]


@pytest.mark.parametrize(
    ("key", "value", "place", "reason"),
    [
        ("10.0.0.3", {"ifindex": 1, "mtu": 70000}, "entries[3].value.mtu", "70000 does not fit u16 (0..65535)"),
        ("10.0.0.3", {"ifindex": 1, "mtu": -1}, "entries[3].value.mtu", "-1 does not fit u16 (0..65535)"),
        ("10.0.0.3", {"ifindex": 1, "mtu": 1.5}, "entries[3].value.mtu", "1.5 is not a whole number"),
        ("10.0.0.3", {"ifindex": 1, "mtu": "many"}, "entries[3].value.mtu", "'many' is not a number"),
        ("10.0.0.3", {"ifindex": 1, "mtu": [1]}, "entries[3].value.mtu", "[1] is not a whole number"),
        ("10.0.0.3", {"ifindex": "cali9", "mtu": 1}, "entries[3].value.ifindex", "there is no interface 'cali9'"),
        ("10.0.0.3", {"ifindex": 1}, "entries[3].value", "mtu missing"),
        ("10.0.0.3", {"ifindex": 1, "mtu": 1, "flags": 0}, "entries[3].value", "flags unknown"),
        ("10.0.0.3", 5, "entries[3].value", "5 is not a mapping with ifindex, mtu"),
        ("10.0.0.256", {"ifindex": 1, "mtu": 1}, "entries[3].key", "'10.0.0.256' is not of type ip"),
        ("10.1", {"ifindex": 1, "mtu": 1}, "entries[3].key", "'10.1' is not of type ip"),
        (167772163, {"ifindex": 1, "mtu": 1}, "entries[3].key", "167772163 is not of type ip"),
        (["10.0.0.3"], {"ifindex": 1, "mtu": 1}, "entries[3].key", "is not of type ip"),
        ("10.0.0.1", {"ifindex": 1, "mtu": 1}, "entries[3].key", "10.0.0.1 is there twice"),
        ("::ffff:10.0.0.1", {"ifindex": 1, "mtu": 1}, "entries[3].key", "10.0.0.1 is there twice"),
    ],
)
@pytest.mark.parametrize("block", [2, BLOCK])
def test_mistakes_are_found_with_entry_and_field(key: Any, value: Any, place: str, reason: str, block: int) -> None:
    entries = [{"key": f"10.0.0.{i}", "value": {"ifindex": "lo", "mtu": 1500}} for i in range(6)]
    entries[3] = {"key": key, "value": value}
    codecs = Codec("ip", "key"), Codec(PAIR, "value", None, INTERFACES)
    with pytest.raises(OverlayError) as caught:
        encode_entries((entries[i : i + block] for i in range(0, 6, block)), *codecs)
    assert caught.value.parts()["doing"] == "encode an entry"
    assert caught.value.target == place
    assert reason in caught.value.reason
    assert caught.value.advice


@pytest.mark.parametrize("entry", [{"key": "10.0.0.1"}, "10.0.0.1", None, {"key": "::", "value": 1, "ttl": 2}, []])
def test_an_entry_that_is_none(entry: Any) -> None:
    with pytest.raises(OverlayError, match=r"entries\[0\]. .*is not a mapping with key and value"):
        encode_entries([[entry]], Codec("ip", "key"), Codec("u8", "value"))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("u24", "unknown type 'u24'"),
        ("bytes:x", "unknown type"),
        ([], "neither a type nor a list"),
        (7, "neither a type nor a list"),
        ([{"type": "u8"}], "field 0 has no name"),
        ([{"name": "a"}], "field 0 is not a mapping with name and type"),
        ([{"name": "a", "type": "u8"}, {"name": "a", "type": "u8"}], "field a is there twice"),
        ([{"type": "pad:4"}], "no field but padding"),
        ({"type": "u8", "lables": ["a"]}, "unknown option lables"),
        ({"type": "ip", "labels": ["a"]}, "not of ip"),
    ],
)
def test_schemas_that_mean_nothing(schema: Any, reason: str) -> None:
    with pytest.raises(OverlayError) as caught:
        Codec(schema, "value")
    assert reason in caught.value.reason
    assert caught.value.doing == "understand a schema"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.1/8", "the network is 10.0.0.0/8"),
        ("10.0.0.0/33", "longer than its address"),
        ("10.0.0.0/", "no prefix length"),
        ("10.0.0.0/255.0.0.0", "no prefix length"),
        ("fd00::/129", "longer than its address"),
        ("fd00::1/64", "the network is fd00::/64"),
    ],
)
def test_prefixes_that_are_none(text: str, reason: str) -> None:
    with pytest.raises(OverlayError, match=reason):
        Codec("cidr", "key").encode(text)


def test_per_cpu_values_are_summed_and_wrap() -> None:
    codec = Codec([{"name": "n", "type": "u64"}, {"name": "d", "type": "s8"}, {"name": "ip", "type": "ipv4"}], "value")
    copies = [
        codec.encode({"n": (1 << 64) - 1, "d": -3, "ip": "0.0.0.0"}),
        codec.encode({"n": 3, "d": -4, "ip": "10.0.0.1"}),
    ]
    assert codec.decode(codec.total(copies)) == {"n": 2, "d": -7, "ip": "0.0.0.0"}
    assert codec.decode(codec.total([bytes(codec.size), copies[1]])) == {"n": 3, "d": -4, "ip": "10.0.0.1"}


def test_numbers_are_sorted_as_people_count() -> None:
    codec = Codec("u32", "key")
    ordered = [codec.encode(number) for number in (1, 256, 70000)]
    assert sorted([ordered[1], ordered[2], ordered[0]], key=codec.order) == ordered


def test_a_prediction_without_schema_shows_what_was_written() -> None:
    key, value = AsWritten("key"), AsWritten("value")
    encoded = encode_entries([[{"key": "10.0.0.1", "value": {"b": 1, "a": 2}}]], key, value)
    assert {key.show(k): value.show(v) for k, v in encoded.items()} == {"10.0.0.1": '{"a": 2, "b": 1}'}
