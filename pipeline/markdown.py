"""Names and titles as Markdown that shows them as they are: they come from data sets and must not format anything."""

import re


def plain(text: str) -> str:
    """`text` on one line, with tags, links, images, code and table columns escaped."""
    return re.sub(r"([\\`<>\[\]|&!])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """`text` as code. A backtick, which would end it, becomes an apostrophe."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"
