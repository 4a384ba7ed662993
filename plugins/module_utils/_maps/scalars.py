# SPDX-License-Identifier: GPL-3.0-or-later
"""The scalar types of a schema: one value as people write it <-> what struct.pack takes. Pure.

Byte order: ``uN``, ``sN``, ``ifindex`` and the prefix length of ``cidr`` are in the host's, ``beN`` and addresses in
the network's. ``ip`` is 16 bytes, IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2). ``cidr`` is the key of an LPM trie
(struct bpf_lpm_trie_key in linux/bpf.h) over such an address: an IPv4 prefix is 96 longer there than people write.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any, Callable, Literal

MAPPED = bytes(10) + b"\xff\xff"
HOST_ORDER: Literal["little", "big"] = sys.byteorder
_INTEGERS: dict[str, tuple[bool, int, Literal["little", "big"]]] = {
    **{f"{kind}{bits}": (kind == "s", bits // 8, HOST_ORDER) for kind in "us" for bits in (8, 16, 32, 64)},
    **{f"be{bits}": (False, bits // 8, "big") for bits in (16, 32, 64)},
}
SCALARS = ("ipv4", "ipv6", "ip", "cidr", "mac", *_INTEGERS, "ifindex", "bytes")
_STRUCT_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}
_SAMPLE = 256
# What a column of unexpected values raises somewhere below; the value-by-value pass then says what is wrong.
SURPRISES = (struct.error, TypeError, ValueError, KeyError, AttributeError, OverflowError, OSError)


class SchemaError(ValueError):
    """A schema that means nothing; the message is the reason alone."""


@dataclass(frozen=True)
class Scalar:
    """One value in a struct: how it lies in memory and how people write it."""

    type: str
    size: int
    code: str
    """What struct.pack takes for it: an integer code for numbers in host order, ``Ns`` otherwise."""
    column: Callable[[Sequence[Any]], Iterable[Any]]
    """Values -> what struct.pack takes; raises one of SURPRISES for anything that is not plain."""
    encode: Callable[[Any], Any]
    """One value -> what struct.pack takes; raises ValueError with the reason."""
    decode: Callable[[Any], Any]
    numeric: bool = False
    """Summed in per-CPU maps."""
    plain: bool = False
    """struct.pack takes a number as people write it."""


def _integer(name: str, labels: Sequence[str] = ()) -> Scalar:
    signed, size, order = _INTEGERS[name]
    low, high = (-(1 << 8 * size - 1), (1 << 8 * size - 1) - 1) if signed else (0, (1 << 8 * size) - 1)
    numbers = {label: number for number, label in enumerate(labels)}
    swap = order != HOST_ORDER and size > 1

    def encode(value: Any) -> Any:
        if isinstance(value, str) and value in numbers:
            value = numbers[value]
        number = value
        if isinstance(value, str):
            try:
                number = int(value, 0)
            except ValueError:
                known = f", nor one of {', '.join(labels)}" if labels else ""
                raise ValueError(f"{value!r} is not a number{known}") from None
        if not isinstance(number, int):
            raise ValueError(f"{value!r} is not a whole number")
        if not low <= number <= high:
            raise ValueError(f"{number} does not fit {name} ({low}..{high})")
        return number.to_bytes(size, "big") if swap else number

    def decode(raw: Any) -> Any:
        number = int.from_bytes(raw, "big") if swap else raw
        return labels[number] if 0 <= number < len(labels) else number

    def column(values: Sequence[Any]) -> Iterable[Any]:
        if labels:
            return map(encode, values)
        return (number.to_bytes(size, "big") for number in values) if swap else values

    letter = _STRUCT_CODES[size]
    code = f"{size}s" if swap else letter.lower() if signed else letter
    return Scalar(name, size, code, column, encode, decode, numeric=not swap, plain=not (swap or labels))


def _ifindex(interfaces: Mapping[str, int]) -> Scalar:
    names = {number: name for name, number in interfaces.items()}
    plain = _integer("u32")

    def encode(value: Any) -> Any:
        if isinstance(value, str) and value in interfaces:
            return interfaces[value]
        try:
            return plain.encode(value)
        except ValueError:
            if isinstance(value, str):
                raise ValueError(f"there is no interface {value!r}") from None
            raise

    def column(values: Sequence[Any]) -> Iterable[Any]:
        if str not in set(map(type, values)):
            return values
        return [interfaces[value] if value.__class__ is str else value for value in values]

    return Scalar("ifindex", 4, "I", column, encode, lambda raw: names.get(raw, raw), plain=True)


def _text(
    name: str,
    size: int,
    parse: Callable[[str], bytes],
    show: Callable[[bytes], str],
    example: str,
    *,
    parse_all: Callable[[Sequence[str]], Iterable[bytes]] | None = None,
) -> Scalar:
    """A scalar that people write as text; ``parse`` may raise any of SURPRISES."""

    def encode(value: Any) -> bytes:
        try:
            raw = parse(value)
        except SURPRISES as error:
            own = isinstance(error, ValueError) and not isinstance(error, UnicodeError) and str(error)
            raise ValueError(own or f"{value!r} is not of type {name}, such as {example}") from None
        return raw

    def column(values: Sequence[Any]) -> Iterable[bytes]:
        if 2 * len(set(values[:_SAMPLE])) < len(values[:_SAMPLE]):
            return map({value: parse(value) for value in set(values)}.__getitem__, values)
        return parse_all(values) if parse_all else map(parse, values)

    return Scalar(name, size, f"{size}s", column, encode, show)


def _parse_ip(text: str) -> bytes:
    return inet_pton(AF_INET6, text) if ":" in text else MAPPED + inet_pton(AF_INET, text)


def _parse_ips(texts: Sequence[str]) -> list[bytes]:
    try:
        return [MAPPED + inet_pton(AF_INET, text) for text in texts]
    except OSError:
        return [_parse_ip(text) for text in texts]


def _show_ip(raw: bytes) -> str:
    return inet_ntop(AF_INET, raw[12:]) if raw.startswith(MAPPED) else inet_ntop(AF_INET6, raw)


def _parse_cidr(text: str) -> bytes:
    address, slash, length = text.partition("/")
    raw = _parse_ip(address)
    shift = 0 if ":" in address else 96
    if slash and not (length.isascii() and length.isdigit()):
        raise ValueError(f"{text!r} has no prefix length after its slash")
    bits = int(length) + shift if slash else 128
    if bits > 128:
        raise ValueError(f"{text!r} has a prefix longer than its address")
    number = int.from_bytes(raw, "big")
    network = number >> 128 - bits << 128 - bits
    if network != number:
        kept = _show_ip(network.to_bytes(16, "big"))
        raise ValueError(f"{text!r} has bits set beyond its prefix; the network is {kept}/{bits - shift}")
    return bits.to_bytes(4, HOST_ORDER) + raw


def _show_cidr(raw: bytes) -> str:
    bits = int.from_bytes(raw[:4], HOST_ORDER)
    if bits >= 96 and raw[4:].startswith(MAPPED):
        return f"{inet_ntop(AF_INET, raw[16:])}/{bits - 96}"
    return f"{inet_ntop(AF_INET6, raw[4:])}/{bits}"


_MAC = re.compile(r"[0-9a-fA-F]{2}(?:([:-])[0-9a-fA-F]{2})(?:\1[0-9a-fA-F]{2}){4}")


def _parse_mac(text: str) -> bytes:
    if not _MAC.fullmatch(text):
        raise TypeError
    return bytes.fromhex(text.replace(text[2], ""))


def _bytes(size: int) -> Scalar:
    def parse(text: str) -> bytes:
        try:
            raw = bytes.fromhex((text[2:] if text.startswith("0x") else text).replace(":", ""))
        except ValueError:
            raise TypeError from None
        if len(raw) != size:
            raise ValueError(f"{text!r} is {len(raw)} bytes, not {size}")
        return raw

    return _text(f"bytes:{size}", size, parse, bytes.hex, f"{bytes(range(min(size, 4))).hex()!r} (hexadecimal)")


_TEXTS: dict[str, tuple[int, Callable[[str], bytes], Callable[[bytes], str], str]] = {
    "ipv4": (4, lambda text: inet_pton(AF_INET, text), lambda raw: inet_ntop(AF_INET, raw), "10.0.0.1"),
    "ipv6": (16, lambda text: inet_pton(AF_INET6, text), lambda raw: inet_ntop(AF_INET6, raw), "fd00::1"),
    "ip": (16, _parse_ip, _show_ip, "10.0.0.1 or fd00::1"),
    "cidr": (20, _parse_cidr, _show_cidr, "10.0.0.0/24 or fd00::/64"),
    "mac": (6, _parse_mac, lambda raw: raw.hex(":"), "aa:bb:cc:dd:ee:ff"),
}


def scalar(name: str, options: Mapping[str, Any], room: int | None, interfaces: Mapping[str, int]) -> Scalar:
    """The scalar of that name; ``room``: bytes left for a plain ``bytes``. Raises SchemaError."""
    unknown = set(options) - {"name", "type", "labels"}
    if unknown:
        raise SchemaError(f"unknown option {', '.join(sorted(unknown))} beside type {name}")
    labels = options.get("labels") or ()
    if labels and not (isinstance(labels, (list, tuple)) and all(isinstance(label, str) for label in labels)):
        raise SchemaError("labels is a list of names, the first one for 0")
    if labels and name not in _INTEGERS:
        raise SchemaError(f"labels name the numbers of an integer type, not of {name}")
    if name in _INTEGERS:
        return _integer(name, labels)
    if name == "ifindex":
        return _ifindex(interfaces)
    if name in _TEXTS:
        return _text(name, *_TEXTS[name], parse_all=_parse_ips if name == "ip" else None)
    kind, _colon, size = name.partition(":")
    if kind == "bytes":
        if not size and room is None:
            raise SchemaError("bytes needs a size here, such as bytes:16")
        if not size or (size.isascii() and size.isdigit() and int(size) > 0):
            return _bytes(int(size) if size else room or 0)
    raise SchemaError(f"unknown type {name!r}; known are {', '.join(SCALARS)} and pad:N in a struct")
