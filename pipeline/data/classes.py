"""Lists of classes as other tools write them: CVAT, Roboflow, and those with a line `label name` or `name r g b`."""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from deeplab.errors import DataError
from deeplab.store import Color
from pipeline.data.formats.base import read_lines
from pipeline.errors import ParamsError
from pipeline.settings.yaml import read_yaml

LISTS = (
    "classes.txt",
    "class_names.txt",
    "labelmap.txt",
    "_classes.csv",
    "class_dict.csv",
    "label_colors.txt",
    "data.yaml",
    "labels.txt",
)
RGB = r"(?P<r>\d+)[\s,]+(?P<g>\d+)[\s,]+(?P<b>\d+)"
FORMS = (  # of a line
    re.compile(rf"(?P<name>[^:]+):{RGB}(?!\d)"),  # CVAT: road:128,64,128::
    re.compile(rf"{RGB}[\s,]+(?P<name>[^\d\s,].*)$"),  # 128 64 128 Road
    re.compile(rf"(?P<label>\d+)[\s,;:]+(?P<name>[^\s,].*?)(?:[\s,]+{RGB})?$"),  # 3 Road, or 3 Road 128 64 128
    re.compile(rf"(?P<name>[^\s,].*?)[\s,]+{RGB}$"),  # Road,128,64,128
    re.compile(r"(?P<name>.+)$"),
)
HEADER = re.compile(r"(?i)#|(pixel value|label|name|class|id)\s*,")  # begins a line that is no class


class Listed(NamedTuple):
    """A class in a list."""

    label: int | None
    name: str
    color: Color | None


def find_list(*roots: Path) -> Path | None:
    """The list of classes in one of the folders `roots`, in a folder of theirs, or beside them, if there is one."""
    below = [folder for root in roots for folder in sorted(root.iterdir()) if folder.is_dir()]
    folders = (*roots, *below, *(root.parent for root in roots))
    return next((folder / name for folder in folders for name in LISTS if (folder / name).is_file()), None)


def read_list(path: Path) -> list[Listed]:
    """The classes in a list, whose names are made unique. Raises DataError without any, or for a number over 255."""
    listed: list[Listed] = []
    names: Counter[str] = Counter()
    for line in yaml_lines(path) if path.suffix in (".yaml", ".yml") else read_lines(path, "label name"):
        match = None if HEADER.match(line) else next(filter(None, (form.match(line.strip()) for form in FORMS)), None)
        if match is None:
            continue
        part = match.groupdict()
        numbers = [int(part[key]) for key in ("label", "r", "g", "b") if part.get(key)]
        if max(numbers, default=0) > 255:
            raise DataError(f"{path}: got {line.strip()!r}, expected labels and colours from 0 to 255")
        name = " ".join(part["name"].split())
        names[name] += 1
        color = (numbers[-3], numbers[-2], numbers[-1]) if part.get("r") else None
        label = numbers[0] if part.get("label") else None
        listed.append(Listed(label, name if names[name] == 1 else f"{name} {names[name]}", color))
    if not listed:
        raise DataError(f"{path}: no class in it, expected lines `label name`")
    return listed


def yaml_lines(path: Path) -> list[str]:
    """The `names` of a data.yaml of YOLO as lines `label name`. Raises DataError without any."""
    try:
        names = read_yaml(path).get("names")
    except ParamsError as error:
        raise DataError(str(error)) from None
    rows = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(rows, dict) or not all(isinstance(label, int) for label in rows):
        raise DataError(f"{path}: names: got {names!r}, expected a list of the classes")
    return [f"{label} {rows[label]}" for label in sorted(rows)]
