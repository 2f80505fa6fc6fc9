"""The page as a whole: first all tables, those with published numbers apart, then each data set in detail."""

from collections.abc import Sequence

from pipeline.page.html import whole
from pipeline.page.inputs import DatasetPage
from pipeline.page.plots import drawing
from pipeline.page.sections import SECTIONS, results

PUBLISHED = "Results beside published numbers"
OWN = "Other data sets"
COMPARED = (
    "The first published number is that of sssegmentation, whose recipe this is: one scale, no flip. One run moves by "
    "about 0.7 (PASCAL VOC, CityScapes) to 0.8 (ADE20k) with nothing changed: within that a number is reproduced. "
    "Nothing is said of a subset of the images, of other settings than the recipe's, or without every seed."
)
ALONE = "Nothing is published for these, and none of their numbers says anything about the tables above."


def write_page(pages: Sequence[DatasetPage]) -> str:
    """The HTML of the page."""
    total, measured = sum(len(page.cells) for page in pages), sum(len(page.measured) for page in pages)
    parts = {
        (PUBLISHED, COMPARED): [page for page in pages if page.published],
        (OWN, ALONE): [page for page in pages if not page.published],
    }
    with drawing():
        groups = [
            {"title": title, "words": words, "pages": found, "results": {page.name: results(page) for page in found}}
            for (title, words), found in parts.items()
            if found
        ]
        chapters = []
        for page in pages:
            if page.measured:
                drawn = {title: section(page) for title, section in SECTIONS.items()}
                chapters.append((page, {title: content for title, content in drawn.items() if content}))
    summary = f"{measured} of {total} cells are measured with the settings, data and code of this checkout."
    return whole(summary=summary, groups=groups, chapters=chapters)
