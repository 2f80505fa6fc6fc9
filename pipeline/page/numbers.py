"""Numbers as they stand on the page: a dash where there is none."""

from collections.abc import Callable
from statistics import fmean
from typing import Any


def mean(seeds: list[dict[str, Any]], name: str) -> float | None:
    values = [facts[name] for facts in seeds if isinstance(facts.get(name), int | float)]
    return fmean(values) if values else None


def amount(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else form.format(value / unit)


def duration(seconds: float | None) -> str:
    """Hours and minutes, or seconds when it is short."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def percent(value: float | None) -> str:
    """Two digits; a dash for nothing and for nan."""
    return "-" if value is None or value != value else f"{value:.2f}"


def signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def interval(
    found: dict[str, Any], form: Callable[[float | None], str] = percent, low: str = "low", high: str = "high"
) -> str:
    """From `low` to `high` in percent; a dash without them."""
    ends = [found.get(low), found.get(high)]
    return "-" if None in ends else "[{}, {}]".format(*(form(100 * float(end or 0)) for end in ends))


def extent(values: dict[str, float]) -> str:
    return " / ".join(f"{value:g}" for value in values.values())
