"""The page as a whole: first all tables, those with published numbers apart, then each data set in detail."""

from collections.abc import Sequence

from pipeline.page import html
from pipeline.page.inputs import DatasetPage
from pipeline.page.sections import SECTIONS, results
from pipeline.pictures.charts import COLORS

PUBLISHED = "Results beside published numbers"
OWN = "Other data sets"
COMPARED = (
    "The first published number is that of sssegmentation, whose recipe this is: one scale, no flip. The same training "
    "repeated moves by about 0.7 (PASCAL VOC, Cityscapes) to 0.8 (ADE20K): within that a number counts as reproduced. "
    "No verdict is given for a subset of the images, for settings that differ from the recipe, or while a seed is "
    "missing."
)
ALONE = "No numbers are published for these. They say nothing about the tables above."


def write_page(pages: Sequence[DatasetPage]) -> str:
    """The HTML of the page."""
    total, measured = sum(len(page.cells) for page in pages), sum(len(page.measured) for page in pages)
    parts = {
        (PUBLISHED, COMPARED): [page for page in pages if page.published],
        (OWN, ALONE): [page for page in pages if not page.published],
    }
    groups = [
        {"title": title, "words": words, "pages": found, "results": {page.name: results(page) for page in found}}
        for (title, words), found in parts.items()
        if found
    ]
    chapters = [
        (page, {title: content for title, section in SECTIONS.items() if (content := section(page))})
        for page in pages
        if page.measured
    ]
    summary = f"{measured} of {total} cells are measured with the settings, data and code of this checkout."
    return html.page(summary=summary, groups=groups, chapters=chapters, colors=COLORS)
