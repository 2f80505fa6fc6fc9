"""What is wrong with a setting, in one line: file, key, value and what is expected."""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import ParamsError

Value = TypeVar("Value")
Location = Sequence[str]  # the keys that lead to a setting


def validate(kind: type[Value], values: Any, place_of: Callable[[Location], str]) -> Value:
    """`values` as `kind`. Raises ParamsError for the first mistake; `place_of` gives file and key of a location."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        # A misspelt key is also a missing one: name the misspelling.
        mistake = min(error.errors(), key=lambda found: found["type"] != "unexpected_keyword_argument")
    location = [str(part) for part in mistake["loc"]]
    message = mistake["msg"]
    if mistake["type"] == "value_error":  # a rule of this project: "key: got ..., expected ..."
        key, message = message.removeprefix("Value error, ").split(": ", 1)
        raise ParamsError(f"{place_of([*location, key])}: {message}")
    if mistake["type"] == "unexpected_keyword_argument":
        *parent, name = location
        where = place_of(location).removesuffix(name).rstrip(".: ")
        raise ParamsError(f"{where}: {unknown(name, known_names(kind, parent))}")
    if mistake["type"].startswith("missing"):
        raise ParamsError(f"{place_of(location)}: missing. Add it; it has no default.")
    expected = re.sub(r"^\w+ should (be|have) | after validation, not \d+$", "", message)
    raise ParamsError(f"{place_of(location)}: got {mistake['input']!r}, expected {expected}")


def known_names(kind: Any, location: Location) -> list[str]:
    """The names of settings that are allowed at `location` below the dataclass `kind`."""
    for part in location:
        kind = next((field.type for field in fields(kind) if field.name == part), kind)
        while not is_dataclass(kind):  # an annotation, a tuple or a mapping of named rows
            inner = get_args(kind)
            if not inner:
                return []
            kind = next((each for each in inner if is_dataclass(each)), inner[0])
    return [field.name for field in fields(kind)]


def unknown(name: str, known: Iterable[str]) -> str:
    """That `name` is not known, and the nearest name that is."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"unknown name {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}")
