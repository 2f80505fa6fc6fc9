"""The pieces of a page, with everything that comes from data escaped; and numbers, a dash where there is none."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

FOLDER = Path(__file__).parent
NUMBER = re.compile(r"[-+]?[\d.,]+( ± [\d.]+)?( [%A-Za-z]{1,3})?|\[[-+\d., ]+\]|-")  # aligned right


@cache
def environment() -> jinja2.Environment:
    """The templates beside this file; a name that a template does not get is an error."""
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
    """`value` escaped; a narrow column may break it after an underscore."""
    return value if isinstance(value, Markup) else escape(value).replace("_", Markup("_<wbr>"))


def part(name: str, *values: Any, **options: Any) -> Markup:
    """The macro `name` of parts.html."""
    macro = getattr(environment().get_template("parts.html").module, name)
    return Markup(macro(*values, **options))  # noqa: S704  the macro has escaped its values


def page(**values: Any) -> str:
    """The whole page."""
    style = Markup((FOLDER / "style.css").read_text(encoding="utf-8"))  # noqa: S704  our own file
    return environment().get_template("page.html").render(style=style, **values)


def table(rows: Sequence[Mapping[str, Any]], caption: str) -> Markup:
    """A table with the keys of the first row as its head; the first column names the row. Empty without rows."""
    # As objects: pandas would turn HTML into plain text, which would then be escaped once more.
    return part("table", pd.DataFrame(rows, dtype=object), caption) if rows else Markup()


def joined(parts: Sequence[Markup]) -> Markup:
    return Markup("\n").join(parts)


def amount(value: float | None, form: str, unit: float = 1) -> str:
    """`value` in `unit`s, in the format `form`."""
    return "-" if value is None else form.format(value / unit)


def duration(seconds: float | None) -> str:
    """Hours and minutes, or seconds when it is short."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def percent(value: float | None) -> str:
    """Percent with two digits; a dash also for nan."""
    return "-" if value is None or value != value else f"{value:.2f}"


def signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def interval(
    found: Mapping[str, Any], form: Callable[[float | None], str] = percent, low: str = "low", high: str = "high"
) -> str:
    """The shares `low` to `high` in percent; a dash without them."""
    if found.get(low) is None or found.get(high) is None:
        return "-"
    return f"[{form(100 * found[low])}, {form(100 * found[high])}]"
