# SPDX-License-Identifier: GPL-3.0-or-later
"""The walk through the built site: links that lead nowhere, and answers that are far away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def page(body: str) -> str:
    return f'<div class="menu"><a href="far.html">in every menu</a></div><div role="main"><div>{body}</div></div>'


def questions(number: int, answer: str = '<a href="../near.html#why">why</a>') -> str:
    heading = '<h2>Question {}?<a class="headerlink" href="#q">¶</a></h2>'
    return page("".join(heading.format(asked) + answer for asked in range(number)))


def check(folder: Path, **changed: str) -> str:
    pages = {
        "index": page('<a href="docs/faq.html">questions</a> <a href="https://example.org/x.html">elsewhere</a>'),
        "docs/faq": questions(10),
        "near": page('<h2 id="why">Why</h2><a href="far.html">more</a>'),
        "far": page("more"),
    }
    for name, text in (pages | {name.replace("__", "/"): text for name, text in changed.items()}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    command = [sys.executable, str(ROOT / "tools/site/check.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (not done.stderr)
    return done.stdout + done.stderr


def test_site_without_fault(tmp_path: Path) -> None:
    assert check(tmp_path) == "4 pages, 10 questions.\n"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"far": page('<a href="gone.html">x</a>')}, "far.html: the link gone.html leads nowhere."),
        ({"near": page("<h2>Why</h2>")}, "docs/faq.html: the link ../near.html#why leads nowhere."),
        ({"docs__faq": questions(9)}, "9 questions, fewer than 10"),
        ({"docs__faq": questions(10, "Because.")}, "'Question 3?' has no link to a page of the site"),
        (
            {"index": page('<a href="a.html">a</a>'), "a": page('<a href="docs/faq.html">questions</a>')},
            "the answer to 'Question 3?' on near.html is 3 links from the start page",
        ),
        ({"index": page('<a href="near.html">near</a>')}, "cannot be reached from the start page"),
    ],
    ids=["page", "anchor", "few", "no link", "far", "unreached"],
)
def test_fault_is_named(changed: dict[str, str], words: str, tmp_path: Path) -> None:
    assert words in check(tmp_path, **changed)
