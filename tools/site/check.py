# SPDX-License-Identifier: GPL-3.0-or-later
"""Walks the built site: every link of its own leads somewhere, and every answer is near: check.py FOLDER"""

from __future__ import annotations

import os.path
import sys
from collections import deque
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

START = "index.html"
QUESTIONS = "docs/faq.html"
FEWEST = 10
FARTHEST = 2  # links from the start page to an answer


class Page(HTMLParser):
    """The anchors of a page, and the links of its text by the heading (h2) above them; menus do not count."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: dict[str, list[str]] = {"": []}
        self._heading = ""
        self._in_heading = False
        self._depth = 0  # of elements within the text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "div" and (self._depth or values.get("role") == "main"):
            self._depth += 1
        if not self._depth:
            return
        if tag == "h2":
            self._in_heading, self._heading = True, ""
        elif tag == "a" and "headerlink" not in values.get("class", "") and not self._in_heading:
            self.links.setdefault(self._heading, []).append(values.get("href", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self._depth:
            self._depth -= 1
        if tag == "h2":
            self._in_heading = False
            self.links.setdefault(self._heading, [])

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self._heading = (self._heading + data).removesuffix("¶")


def target(page: str, link: str) -> tuple[str, str] | None:
    """The page and the anchor that a link leads to; None where it leads away from the site."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    path = os.path.normpath(os.path.join(os.path.dirname(page), unquote(parts.path))) if parts.path else page
    return path, unquote(parts.fragment)


def distances(pages: dict[str, Page]) -> dict[str, int]:
    """How many links of the text each page is from the start page."""
    found = {START: 0}
    queue = deque([START])
    while queue:
        name = queue.popleft()
        for link in (link for links in pages[name].links.values() for link in links):
            to = target(name, link)
            if to and to[0] in pages and to[0] not in found:
                found[to[0]] = found[name] + 1
                queue.append(to[0])
    return found


def dead_links(folder: Path, pages: dict[str, Page]) -> list[str]:
    dead = []
    for name, page in pages.items():
        for link in (link for links in page.links.values() for link in links):
            to = target(name, link)
            there = to is None or (folder / to[0]).is_file()
            if to and to[1] and to[0] in pages:
                there = to[1] in pages[to[0]].anchors
            if not there:
                dead.append(f"{name}: the link {link} leads nowhere.")
    return dead


def far_answers(pages: dict[str, Page]) -> list[str]:
    near = distances(pages)
    answers = {heading: links for heading, links in pages[QUESTIONS].links.items() if heading}
    if QUESTIONS not in near:
        return [f"{QUESTIONS} cannot be reached from the start page."]
    wrong = [] if len(answers) >= FEWEST else [f"{QUESTIONS}: {len(answers)} questions, fewer than {FEWEST}."]
    for heading, links in answers.items():
        leads = [to[0] for to in (target(QUESTIONS, link) for link in links) if to and to[0] in pages]
        if not leads:
            wrong.append(f"{QUESTIONS}: '{heading}' has no link to a page of the site.")
        wrong += [
            f"{QUESTIONS}: the answer to '{heading}' on {page} is {near[page]} links from the start page."
            for page in leads
            if near[page] > FARTHEST
        ]
    return wrong


def main() -> None:
    folder = Path(sys.argv[1])
    files = sorted(folder.rglob("*.html"))
    pages = {str(file.relative_to(folder)): Page(file.read_text(encoding="utf-8")) for file in files}
    wrong = dead_links(folder, pages) + far_answers(pages)
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(pages)} pages, {len(pages[QUESTIONS].links) - 1} questions.")


if __name__ == "__main__":
    main()
