"""The pieces of a page, with everything that comes from data escaped."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

FOLDER = Path(__file__).parent
NUMBER = re.compile(r"[-+]?[\d.,]+( ± [\d.]+)?( [%A-Za-z]{1,3})?|\[[-+\d., ]+\]|-")  # stands at the right of its column


@cache
def environment() -> jinja2.Environment:
    """Templates beside this file; a name that they do not know is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    made.tests["numeral"] = lambda value: NUMBER.fullmatch(re.sub(r"<[^>]*>", "", str(value))) is not None
    made.filters["breakable"] = breakable
    return made


def breakable(value: object) -> Markup:
    """`value` escaped, with places after its underscores where a narrow column may break it."""
    return value if isinstance(value, Markup) else escape(value).replace("_", Markup("_<wbr>"))


def part(name: str, *values: Any, **options: Any) -> Markup:
    """The macro `name` of parts.html."""
    macro = getattr(environment().get_template("parts.html").module, name)
    return Markup(macro(*values, **options))  # noqa: S704  the macro has escaped its values


def whole(**values: Any) -> str:
    """The page."""
    style = Markup((FOLDER / "style.css").read_text(encoding="utf-8"))  # noqa: S704  our own file
    return environment().get_template("page.html").render(style=style, **values)


def table(rows: Sequence[Mapping[str, Any]], caption: str) -> Markup:
    """`rows` with the keys of the first as its head; the first column names the row. Nothing without rows."""
    # As objects: pandas would make plain text of HTML, which would then be escaped once more.
    return part("table", pd.DataFrame(rows, dtype=object), caption) if rows else Markup()


def joined(parts: Sequence[Markup]) -> Markup:
    return Markup("\n").join(parts)
