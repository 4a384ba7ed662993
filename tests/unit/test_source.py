# SPDX-License-Identifier: GPL-3.0-or-later
"""The bundle of a C file, its includes, its digest."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._objects import headers, source
from ansible_collections.ebpf.overlay.plugins.module_utils._objects.source import Bundle, Include


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_h", ".h").replace("_c", ".c")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# --- includes ---------------------------------------------------------------------------------------------------------


def test_includes_in_all_their_forms() -> None:
    text = (
        '#include "a.h"\n'
        " #  include <linux/ip.h>  // why\n"
        '// #include "no.h"\n'
        '/* #include "no.h"\n'
        '#include "no.h" */ int x;\n'
        '#include/**/"b.h"\n'
        'char *s = "/*"; int y;\n'
        '#include "c.h"\n'
        "#include SOME_MACRO\n"
        "#include_next <d.h>\n"
        "#error don't\n"
        '#include "e.h"\n'
    )
    assert source.includes(text) == [
        Include(0, "a.h", True),
        Include(1, "linux/ip.h", False),
        Include(5, "b.h", True),
        Include(7, "c.h", True),
        Include(9, "d.h", False),
        Include(11, "e.h", True),
    ]


@given(st.text(alphabet="ab\"/*\\\n'#"))
def test_comments_never_move_a_line(text: str) -> None:
    assert source._without_comments(text).count("\n") == text.count("\n")
    assert len(source._without_comments(text)) == len(text)


# --- bundles ----------------------------------------------------------------------------------------------------------


def test_bundle_follows_quoted_includes_through_folders(tmp_path: Path) -> None:
    write(
        tmp_path,
        bpf__main_c='#include "parts/a.h"\n#include <linux/ip.h>\n#include "linux/tcp.h"\n',
        bpf__parts__a_h='#include "b.h"\n#include "../../common.h"\n#include "top.h"\n',
        bpf__parts__b_h="b\n",
        bpf__top_h="top\n",
        common_h="common\n",
        bpf__unused_h="unused\n",
    )
    bundle = source.read_bundle(str(tmp_path / "bpf" / "main.c"))
    assert bundle.main == "main.c"
    assert set(bundle.files) == {"main.c", "parts/a.h", "parts/b.h", "../common.h", "top.h"}
    assert source.unpack(source.pack(bundle)) == bundle
    flat = source.flatten(bundle)
    assert [line for line in flat.splitlines() if line in ("b", "common", "top")] == ["b", "common", "top"]
    assert '#include "linux/tcp.h"' in flat


def test_flat_text_keeps_the_numbers_of_lines() -> None:
    bundle = Bundle("main.c", {"main.c": 'one\n#include "a.h"\nthree\n', "a.h": "first\nsecond"})
    assert source.flatten(bundle).splitlines() == [
        '#line 1 "main.c"', "one", '#line 1 "a.h"', "first", "second", '#line 3 "main.c"', "three", "",
    ]  # fmt: skip


def test_pragma_once_becomes_a_guard_and_circles_end() -> None:
    files = {
        "main.c": '#include "a.h"\n#include "a.h"\n',
        "a.h": '#pragma once\n#include "b.h"\nint a;\n',
        "b.h": '#include "a.h"\nint b;\n',
    }
    flat = source.flatten(Bundle("main.c", files))
    assert "pragma" not in flat
    assert flat.count("#ifndef OVERLAY_ONCE_0") == flat.count("#define OVERLAY_ONCE_0") == 2


def test_includes_that_multiply_are_refused() -> None:
    files = {f"{n}.h": f'#include "{n + 1}.h"\n' * 8 for n in range(12)}
    files["12.h"] = "int x;" * 1000
    with pytest.raises(OverlayError, match="include guards"):
        source.flatten(Bundle("0.h", files))


def test_source_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OverlayError, match="ENOENT"):
        source.read_bundle(str(tmp_path / "gone.c"))
    (tmp_path / "latin.c").write_bytes(b"// \xe9\n")
    with pytest.raises(OverlayError, match="UTF-8"):
        source.read_bundle(str(tmp_path / "latin.c"))


def test_what_is_no_bundle_is_refused() -> None:
    for text in ("", "???", "aGVsbG8="):
        with pytest.raises(OverlayError, match="bundle"):
            source.unpack(text)


# --- identity ---------------------------------------------------------------------------------------------------------


def test_system_headers_are_followed_and_circles_end() -> None:
    system = {
        "linux/a.h": "#include <linux/b.h>\n",
        "linux/b.h": '#include <linux/a.h>\n#include "c.h"\n',
        "linux/c.h": "",
    }
    found = source.system_headers("#include <linux/a.h>\n#include <bcc/proto.h>\n", ("linux/r.h",), system.get)
    assert found == system


@given(st.lists(st.text(max_size=3), min_size=4, max_size=4), st.lists(st.text(max_size=3), min_size=4, max_size=4))
def test_digest_tells_apart_whatever_differs(one: list[str], other: list[str]) -> None:
    def digest_of(parts: list[str]) -> str:
        text, flag, header, compiler = parts
        return source.digest(text, [flag], {"linux/a.h": header}, compiler, "x86_64")

    assert (digest_of(one) == digest_of(other)) == (one == other)


def test_digest_depends_on_headers_flags_compiler_and_machine_only() -> None:
    base = ("text", ["-DA=1"], {"a.h": "1", "b.h": "2"}, "bcc 0.31.0", "x86_64")
    digest = source.digest(*base)
    assert len(digest) == 64
    assert source.digest("text", ["-DA=1"], {"b.h": "2", "a.h": "1"}, "bcc 0.31.0", "x86_64") == digest
    for position, value in enumerate(["texT", ["-DA=2"], {"a.h": "1", "b.h": "3"}, "bcc 0.31.1", "aarch64"]):
        changed = [*base]
        changed[position] = value
        assert source.digest(*changed) != digest  # type: ignore[arg-type]


def test_define_flags() -> None:
    defines = {"B": True, "A": 4, "C": "", "D": None, "E": False, "F": "x y"}
    assert source.define_flags(defines) == ["-DA=4", "-DB=1", "-DC", "-DD", "-DE=0", "-DF=x y"]
    for wrong in ({"A-B": 1}, {"A": [1]}, {"A": "x\ny"}, {"": 1}):
        with pytest.raises(OverlayError, match="define a macro"):
            source.define_flags(wrong)


def test_header_tree(tmp_path: Path) -> None:
    headers.write_tree(str(tmp_path))
    assert (tmp_path / "include/uapi/linux/bpf.h").read_text() == ""
    assert "typedef unsigned long long u64;" in (tmp_path / "include/linux/kconfig.h").read_text()
    assert f"{tmp_path}/after" in headers.cflags(str(tmp_path))
    assert headers.resolve("linux/bpf.h") == headers.resolve("uapi/linux/bpf.h") == ""
    assert headers.resolve("no/such.h") is None
