"""The pieces of a page, with everything that comes from data escaped; and numbers, a dash where there is none."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

FOLDER = Path(__file__).parent
NUMBER = re.compile(r"[-+]?[\d.,]+( ± [\d.]+)?( [%A-Za-z]{1,3})?|\[[-+\d., ]+\]|-")  # aligned right
SHORT = 10  # digits of a hash

Row = Mapping[str, Any]


@cache
def environment() -> jinja2.Environment:
    """The templates beside this file; a name that a template does not get is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
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


def table(rows: Sequence[Row], caption: str) -> Markup:
    """A table with the keys of the first row as its head; the first column names the row. Empty without rows."""
    if not rows:
        return Markup()
    numbers = [name for name in list(rows[0])[1:] if is_numeric([row[name] for row in rows])]
    return part("table", rows, numbers, caption)


def is_numeric(values: Sequence[object]) -> bool:
    """Whether a column holds numbers and dashes, and not dashes alone."""
    texts = [re.sub(r"<[^>]*>", "", str(value)) for value in values]
    return all(map(NUMBER.fullmatch, texts)) and set(texts) != {"-"}


def marked(texts: Mapping[Any, Any], values: Mapping[Any, float | None]) -> dict[Any, Any]:
    """`texts`, with that of the largest of `values` in bold where there are several."""
    known = {key: value for key, value in values.items() if value is not None and value == value}
    best = max(known, key=lambda key: known[key]) if len(known) > 1 else None
    return {key: part("best", text) if key == best else text for key, text in texts.items()}


def short(value: str) -> Markup:
    """The first digits of a hash, and what follows it; all of it where the mouse rests."""
    digest, _, rest = value.partition(" ")
    return part("short", value, f"{digest[:SHORT]} {rest}".rstrip())


def joined(parts: Sequence[Markup]) -> Markup:
    return Markup("\n").join(parts)


def amount(value: float | None, form: str, unit: float = 1) -> str:
    """`value` in `unit`s, in the format `form`."""
    return "-" if value is None else form.format(value / unit)


def durations(seconds: Sequence[float | None]) -> list[str]:
    """All in the unit that suits the longest."""
    longest = max((value for value in seconds if value is not None), default=0)
    form, unit = ("{:.0f} s", 1) if longest < 120 else ("{:.1f} min", 60) if longest < 7200 else ("{:.1f} h", 3600)
    return [amount(value, form, unit) for value in seconds]


def percent(value: float | None) -> str:
    """Percent with two digits; a dash also for nan."""
    return "-" if value is None or value != value else f"{value:.2f}"


def signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def interval(found: Row, form: Callable[[float | None], str] = percent, low: str = "low", high: str = "high") -> str:
    """The shares `low` to `high` in percent; a dash without them."""
    if found.get(low) is None or found.get(high) is None:
        return "-"
    return f"[{form(100 * found[low])}, {form(100 * found[high])}]"
