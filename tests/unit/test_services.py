# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's services, and the ports that follow from them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import SCHEMAS
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.services import parse_services, service_entries
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.codec import (
    Codec,
    encode_entries,
    in_blocks,
    with_ranges,
)


def ports_of(services: Any) -> dict[int, int]:
    """What the map holds in the end."""
    key, value = SCHEMAS["services"]
    codecs = Codec(key, "key"), Codec(value, "value")
    written = encode_entries(with_ranges(in_blocks(service_entries(services)), codecs[0]), *codecs)
    return {codecs[0].decode(raw): codecs[1].decode(number) for raw, number in written.items()}


@pytest.mark.parametrize(
    ("services", "words"),
    [
        ([{"protocol": "udp", "port": 53}], r"overlay_services\[0\]\.protocol.*'udp'"),
        ([{"protocol": "tcp", "port": 0}], r"overlay_services\[0\]\.port.*0 is no port"),
        ([{"protocol": "tcp", "port": "web"}], r"overlay_services\[0\]\.port.*'web'"),
        ([{"port": 80}, {"protocol": "tcp"}], r"overlay_services\[1\]\.port.*None"),
        ([{"port": "8010-8000"}], r"overlay_services\[0\]\.port.*'8010-8000'"),
        ([{"port": "80-65536"}], r"overlay_services\[0\]\.port.*'80-65536'"),
        ([{"port": True}], r"overlay_services\[0\]\.port.*True"),
        ([{"port": "٨٠"}], r"overlay_services\[0\]\.port"),
        ([{"port": 80, "ports": 81}], r"overlay_services\[0\]\. .*is not protocol and port"),
        ([8080], r"overlay_services\[0\]\. Reason: 8080 is not protocol and port"),
        ({"port": 80}, r"overlay_services\. Reason: .*is no list"),
        ("8080", r"overlay_services\. Reason: 8080 is no list"),
        ("port=8080", r"overlay_services\. Reason: 'port=8080' is no list"),
    ],
)
def test_what_cannot_be_accelerated_is_refused_by_name(services: Any, words: str) -> None:
    with pytest.raises(OverlayError, match=words):
        service_entries(services)


def test_services_are_sorted_and_listed_once() -> None:
    services: list[dict[str, Any]] = [{"port": "9090"}, {"port": 80}, {"protocol": "TCP", "port": 9090}]
    assert service_entries(services) == [{"key": 80, "value": 1}, {"key": 9090, "value": 1}]


def test_text_on_the_command_line_is_the_list_that_it_says() -> None:
    assert parse_services('[{"port": "8080"}]') == [("tcp", 8080, 8080)]
    assert parse_services('[{"protocol": "tcp", "port": "8000 - 8010"}]') == [("tcp", 8000, 8010)]


def test_a_range_stays_one_entry_until_it_is_written() -> None:
    services: list[dict[str, Any]] = [{"port": "8000-8010"}, {"port": 8011}, {"port": 80}, {"port": "8005"}]
    assert service_entries(services) == [{"key": 80, "value": 1}, {"key": "8000-8011", "value": 1}]
    assert ports_of(services) == dict.fromkeys([80, *range(8000, 8012)], 1)


def test_all_means_every_port_but_none_that_does_not_exist() -> None:
    assert service_entries([{"port": "all"}, {"port": 80}]) == [{"key": "1-65535", "value": 1}]
    assert ports_of([{"port": "all"}]) == dict.fromkeys(range(1, 65536), 1)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), max_size=8))
def test_the_map_holds_exactly_the_ports_that_were_listed(ranges: list[tuple[int, int]]) -> None:
    services = [{"port": f"{first}-{first + more}"} for first, more in ranges]
    assert set(ports_of(services)) == {port for first, more in ranges for port in range(first, first + more + 1)}


def test_only_keys_that_are_numbers_have_ranges() -> None:
    """Text with a dash is a mistake elsewhere, and is refused as before."""
    value = Codec("u32", "value")
    for key, text in ((Codec("ip", "key"), "1-2"), (Codec("u32", "key"), "0-4294967295")):
        blocks = with_ranges(in_blocks([{"key": text, "value": 1}]), key)
        with pytest.raises(OverlayError, match=r"entries\[0\]\.key"):
            encode_entries(blocks, key, value)
