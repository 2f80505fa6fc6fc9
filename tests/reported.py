"""The table of docs/reports.md: what people reported in public about this very job, and what happens here.

A case is a function that makes the input and tries it. It returns when the result is right, and raises the error that a
user would see when the input is refused.
"""

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs/reports.md"
HEADER = "| case | what it is | kind | verdict |\n| :-- | :-- | :-- | :-- |\n"
CASES = {}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row of the table. `refused` is what the message must contain, "" when the input is read right."""

    name: str
    what: str
    kind: str
    refused: str
    source: str  # of a public report: repository#number
    module: str

    @property
    def line(self):
        verdict = f"refused: “{self.refused}”" if self.refused else "right"
        return f"| {self.name}{f' ({self.source})' if self.source else ''} | {self.what} | {self.kind} | {verdict} |\n"


def case(kind, what, refused="", source=""):
    """Mark a test as a case of the table."""

    def mark(test):
        name = test.__name__.removeprefix("test_")
        CASES[name] = Case(name=name, what=what, kind=kind, refused=refused, source=source, module=test.__module__)

        def run(**fixtures):
            if not refused:
                test(**fixtures)
                return
            with pytest.raises(Exception) as caught:  # noqa: PT011  any that users see as one line
                test(**fixtures)
            assert refused in str(caught.value)

        run.__name__, run.__doc__ = test.__name__, what
        run.__signature__ = inspect.signature(test)  # by which pytest finds the fixtures
        return pytest.mark.cases(run)

    return mark


def table():
    """The rows, in the order of the tests."""
    return HEADER + "".join(each.line for each in CASES.values())


def block(text, new=None):
    """The table in the page `text`; with `new` the page with that table."""
    pattern = re.compile(r"(?<=<!-- cases -->\n).*(?=<!-- /cases -->)", re.DOTALL)
    return pattern.search(text)[0] if new is None else pattern.sub(lambda _: new, text)
