# SPDX-License-Identifier: GPL-3.0-or-later
"""BTF becomes schemas, paddings stated."""

from __future__ import annotations

from typing import Any

import pytest
from btf_blob import ARRAY, CONST, PTR, STRUCT, TYPEDEF, UNION, Blob

from ansible_collections.ebpf.overlay.plugins.module_utils._maps.btf import BtfError, parse, schema_of
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.codec import Codec


def schema(blob: Blob, id_: int) -> Any:
    return schema_of(parse(blob.data()), id_)


def test_integers_by_size_and_sign_and_through_typedefs() -> None:
    blob = Blob()
    u16, s64 = blob.integer("unsigned short", 2), blob.integer("long long", 8, signed=True)
    be16 = blob.refer(TYPEDEF, "__be16", blob.refer(TYPEDEF, "__u16", u16))
    const = blob.refer(CONST, "", be16)
    assert [schema(blob, id_) for id_ in (u16, s64, be16, const)] == ["u16", "s64", "be16", "be16"]


def test_a_struct_with_the_padding_that_c_puts_in() -> None:
    blob = Blob()
    u8, u32 = blob.integer("__u8", 1), blob.integer("__u32", 4)
    address = blob.record(STRUCT, "in6_addr", 16, ("raw", blob.array(u8, u32, 16), 0))
    inner = blob.record(STRUCT, "inner", 8, ("n", u32, 0), ("flag", u8, 4))
    outer = blob.record(STRUCT, "outer", 32, ("kind", u8, 0), ("to", inner, 4), ("where", address, 12), ("n", u32, 28))
    found = schema(blob, outer)
    assert found == [
        {"name": "kind", "type": "u8"},
        {"type": "pad:3"},
        {"name": "to", "type": [{"name": "n", "type": "u32"}, {"name": "flag", "type": "u8"}, {"type": "pad:3"}]},
        {"name": "where", "type": "ipv6"},
        {"name": "n", "type": "u32"},
    ]
    assert Codec(found, "value").size == 32


def test_enums_become_labels_where_their_numbers_run_from_0() -> None:
    blob = Blob()
    mode, odd = blob.enum("mode", off=0, drain=1, on=2), blob.enum("odd", low=4, high=9)
    assert schema(blob, mode) == {"type": "u32", "labels": ["off", "drain", "on"]}
    assert schema(blob, odd) == "u32"


def test_what_a_schema_cannot_say_is_bytes() -> None:
    blob = Blob()
    u32 = blob.integer("__u32", 4)
    array = blob.array(u32, u32, 3)
    union = blob.record(UNION, "either", 8, ("a", u32, 0), ("b", array, 0))
    bits = blob.record(STRUCT, "bits", 4, ("low", u32, 0), bit_fields=True)
    nameless = blob.record(STRUCT, "outer", 8, ("", union, 0))
    found = [schema(blob, id_) for id_ in (array, union, bits, nameless)]
    assert found == ["bytes:12", "bytes:8", "bytes:4", "bytes:8"]


def test_types_without_a_size_and_data_that_is_no_btf() -> None:
    blob = Blob()
    pointer = blob.refer(PTR, "", 0)
    itself = blob.refer(TYPEDEF, "loop", 2)
    for id_ in (pointer, itself, 0, 99):
        with pytest.raises(BtfError):
            schema(blob, id_)
    for data in (b"", b"\0" * 24, blob.data()[:-3], blob.data()[:30]):
        with pytest.raises(BtfError):
            parse(data)
    assert ARRAY not in {found.kind for found in parse(blob.data())}
