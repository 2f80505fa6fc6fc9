"""A working folder with a grid of many measured cells, and the settings of as many."""

import json

from tests.fake_grid import ROOT
from tests.records import CELL, Folder

CELLS = 200


def many_rows(row, count=CELLS):
    """`count` rows of a grid, each a cell of its own."""
    return {f"cell_{n:03}": {**row, "train": {"momentum": round(0.5 + n / 1000, 4)}} for n in range(count)}


class Grid(Folder):
    """`CELLS` cells of the demo's data set, each measured and trained."""

    def __init__(self, path, blank_database):
        super().__init__(path, blank_database)
        self.raw["grid"] = many_rows(self.raw["grid"][CELL])
        self.write_params()
        self.read = super().params  # read once: the file is large
        for number, name in enumerate(self.read.cells):
            self.measure(name, 0.2 + number / 1000)
            self.train(name)

    @property
    def params(self):
        return getattr(self, "read", None) or super().params


def page_settings(classes):
    """params.yaml with `CELLS` cells of one data set, as text."""
    from pipeline.settings.yaml import read_yaml

    raw = read_yaml(ROOT / "params.yaml")
    raw["grid"] = many_rows(raw["grid"][CELL])
    kept = {"shapes"}
    for section in ("datasets", "recipes"):
        raw[section] = {name: value for name, value in raw[section].items() if name in kept}
    raw.pop("examples", None)
    return json.dumps(raw)
