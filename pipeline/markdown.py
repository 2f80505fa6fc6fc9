"""Names and titles in Markdown, shown as they are: what a data set calls its classes is not for it to format."""

import re


def plain(text: str) -> str:
    """`text` on one line, of which no tag, link, picture, code or column of a table comes."""
    return re.sub(r"([\\`<>\[\]|&!])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """`text` as code; a backtick, which would end it, becomes an apostrophe."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"
