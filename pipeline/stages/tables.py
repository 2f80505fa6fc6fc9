"""Fill a data set's table: record its results in MLflow, and read the results for the table back from there.

The table shows a number when the fingerprints of settings, data, code and protocol of its run are the current ones,
whoever trained it. Otherwise the cell shows `-`, and stderr says why. Without MLflow, only the records of this folder
fill the table.
"""

import argparse
import sys

from pipeline.errors import run_command
from pipeline.files import write_whole
from pipeline.results.latex import latex
from pipeline.results.model_card import make_cards, value, write_cards
from pipeline.results.records import Row, read_results
from pipeline.results.splits import on_split
from pipeline.results.table import make_rows, markdown, mean_iou, plain_table, sheet
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.tracking.sync import show_rows, synchronise


def run(dataset: str, places: Places = Places()) -> None:
    """Write the table of `dataset` in three forms, and a model card for each cell that was measured here."""
    params = load_params(places.params)
    config = params.dataset(dataset)
    local, reasons = read_results(dataset, params, places)
    results, page = synchronise(dataset, local, params, places)
    rows = make_rows(dataset, results, reasons, params, places)
    for row in rows:
        if not row.results:
            print(f"{row.name}: shown as -: {reasons[row.name]}", file=sys.stderr)
        for split in row.splits if row.results else ():
            if not on_split(row, split).results:
                remedy = f"Run: dvc repro -f evaluate@{row.name}"
                print(f"{row.name}: {split} shown as -: not measured on the current images. {remedy}", file=sys.stderr)
        for is_score, remedy in ((True, "dvc repro evaluate@"), (False, "grid measure ")) if row.results else ():
            kind = [key for key, column in row.columns.items() if (column.beside == "std") == is_score]
            if names := ", ".join(key for key in kind if row.extras[key] is None):
                print(f"{row.name}: {names}: shown as -. Run: {remedy}{row.name}", file=sys.stderr)
    write_cards(make_cards(dataset, rows, params), places.cards(dataset))
    places.tables.mkdir(parents=True, exist_ok=True)
    write_whole(places.table(dataset), markdown(rows))
    write_whole(places.sheet(dataset), sheet(rows))
    write_whole(places.latex(dataset), latex(dataset, rows))
    measured = [(title, each) for row in rows for title, each in numbered(row) if each.results]
    lines = [(title, mean_iou(each), value(each).partition(" % ")[2]) for title, each in measured]
    print(f"{config.title}\n{plain_table(lines)}in {places.table(dataset)}, .csv and .tex")
    if page:
        show_rows(dataset, rows, params, places)
        print(f"the runs: {page}")


def numbered(row: Row) -> list[tuple[str, Row]]:
    """The row, and the same with the numbers of each further split, each with its title."""
    return [(row.name, row), *((f"{row.name} ({split})", on_split(row, split)) for split in row.splits)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a key of `datasets` in params.yaml")
    run(parser.parse_args().dataset)


if __name__ == "__main__":
    run_command(main)
