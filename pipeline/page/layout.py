"""The page as a whole: the data sets with results, each with its table and its sections; then the others, folded."""

from collections.abc import Sequence

from pipeline.page import html
from pipeline.page.inputs import DatasetPage
from pipeline.page.results import results
from pipeline.page.sections import SECTIONS
from pipeline.pictures.colors import COLORS


def write_page(pages: Sequence[DatasetPage]) -> str:
    """The HTML of the page."""
    chapters = [
        (page, results(page), {title: content for title, section in SECTIONS.items() if (content := section(page))})
        for page in pages
        if page.measured
    ]
    waiting = [(page, results(page)) for page in pages if not page.measured]
    return html.page(summary=summary(pages), chapters=chapters, waiting=waiting, colors=COLORS)


def summary(pages: Sequence[DatasetPage]) -> str:
    """How much is measured, and when, where and with which commit the newest of it was trained.

    Nothing of now: the same files give the same page.
    """
    total, measured = sum(len(page.cells) for page in pages), sum(len(page.measured) for page in pages)
    words = f"{measured} of {total} cells are measured with the settings, data and code of this checkout."
    facts = [facts for page in pages for cell in page.measured for facts in cell.facts.values()]
    if not facts:
        return words
    last = max(facts, key=lambda each: str(each.get("started", "")))
    place = ", ".join(str(last[key]) for key in ("host", "device") if last.get(key))
    when = str(last.get("started", "-"))[:16].replace("T", " ")
    commit = str(last.get("commit", "-"))[: html.SHORT] + (" with uncommitted changes" if last.get("dirty") else "")
    return f"{words} The newest was trained on {when} UTC at commit {commit}, on {place or 'an unknown machine'}."
