# SPDX-License-Identifier: GPL-3.0-or-later
"""Sphinx's settings for the site that tools/site/build makes."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes

project = "ebpf.overlay"
author = copyright = "ebpf.overlay maintainers"  # noqa: A001
extensions = ["myst_parser", "sphinx_antsibull_ext"]
include_patterns = ["*.md", "docs/*.md", "examples/*/*.md", "roles/node/README.md", "reference/*.rst"]
html_theme = "alabaster"
html_title = project
html_theme_options = {"page_width": "1200px", "sidebar_width": "240px", "fixed_sidebar": True}
html_sidebars = {"**": ["about.html", "searchbox.html", "navigation.html"]}
html_copy_source = False
html_show_sphinx = False
myst_heading_anchors = 4  # headings are targets of links, as on the page of the repository

# What the reference takes from Ansible's own documents. They are named here, since the site is built without a network.
ANSIBLE = "https://docs.ansible.com/ansible/latest/"
LABELS = {
    "action_plugins": "plugins/action.html",
    "ansible_configuration_settings": "reference_appendices/config.html",
    "callback_plugins": "plugins/callback.html",
    "common_return_values": "reference_appendices/common_return_values.html",
}


def link_to_ansible(_app: Any, _environment: Any, node: nodes.Element, content: nodes.Element) -> nodes.Node | None:
    """A label that no page of this site has; None lets Sphinx complain."""
    label = node["reftarget"]
    plugin = re.fullmatch(r"ansible_collections\.ansible\.builtin\.(\w+)", label)
    page = f"collections/ansible/builtin/{plugin[1]}.html" if plugin else LABELS.get(label)
    return nodes.reference("", "", content, refuri=ANSIBLE + page) if page else None


def setup(app: Any) -> None:
    app.connect("missing-reference", link_to_ansible)
