"""A YAML file as DVC reads it, and one entry of a dvc.lock."""

import json
import re
from pathlib import Path
from typing import Any

from pipeline.errors import ParamsError

MAX_BYTES = 1_000_000


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in `path`, read as YAML 1.2, so that this reader and DVC always see the same values."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = path.read_bytes()
    except OSError as error:
        raise ParamsError(f"{path}: {error.strerror}. Run the command from the folder that holds it.") from None
    if len(text) > MAX_BYTES:
        raise ParamsError(f"{path}: {len(text):,} bytes, expected at most {MAX_BYTES:,}")
    try:
        raw = YAML(typ="safe", pure=True).load(text)
        json.dumps(raw, default=str)  # an alias inside of itself has no end
        YAML(typ="safe").load(text)  # DVC's reader is in C, and does not take a bare address within brackets
    except TypeError:
        raise ParamsError(f"{path}: a key is a date or a list for YAML. Write it in quotes.") from None
    except (RecursionError, ValueError) as error:
        raise ParamsError(f"{path}: nested without end ({type(error).__name__})") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        said = " ".join(str(getattr(error, "problem", None) or error).split())
        remedy = ". Put what stands before it in quotes" if said == "found unexpected ':'" else ""
        raise ParamsError(f"{place}: {said}{remedy}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{path}: expected a mapping of sections, got {type(raw).__name__}")
    return raw


def look_up(values: Any, key: str) -> Any:
    """The value of a dotted `key` in nested mappings; a new object when there is none."""
    for word in key.split("."):
        if not isinstance(values, dict) or word not in values:
            return object()
        values = values[word]
    return values


def stage_in(text: str, name: str) -> dict[str, Any]:
    """The entry of the stage `name` in the text of a dvc.lock, of which nothing else is parsed; {} without one, and for
    one that cannot be read.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    found = re.search(rf"^  {re.escape(name)}:\n((?:    .*\n?)*)", text, re.MULTILINE)
    try:
        entry = YAML(typ="safe").load(found[1]) if found else {}
    except YAMLError:
        return {}
    return entry if isinstance(entry, dict) else {}
