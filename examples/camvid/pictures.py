"""Draw the two pictures of README.md: `python pictures.py`.

pictures/classes.png shows the IoU of each class, from the committed reports/plots. pictures/curves.png shows the mIoU
during training, from runs/ with the weights of the table, and is left as it is when there is none.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from deeplab.errors import DataError
from pipeline.errors import run_command
from pipeline.page.inputs import CellPage, read_pages
from pipeline.pictures import charts
from pipeline.pictures.colors import COLORS
from pipeline.settings.params import load_params
from pipeline.settings.places import Places

OUT = Path(__file__).parent / "pictures"


def main() -> None:
    cells = measured()
    classes = {color: cell.classes.set_index("class") for color, cell in cells.items() if cell.classes is not None}
    if not classes:
        raise DataError("reports/tables/camvid.csv: no scores of this checkout. Run: dvc repro -s tables@camvid")
    scores = pd.DataFrame({color: 100 * each["IoU"] for color, each in classes.items()})
    order = list(scores.mean(axis=1).sort_values(ascending=False).index)
    bars = charts.class_bars({color: dict(scores[color]) for color in classes}, order)
    save(bars, "classes.png", {color: cells[color] for color in classes})
    histories = {
        color: cell.history.assign(mIoU=100 * cell.history["val/mIoU"]).dropna(subset="mIoU")
        for color, cell in cells.items()
        if cell.history is not None and "val/mIoU" in cell.history
    }
    if curves := charts.curves(histories, "mIoU", "mIoU, %"):
        save(curves, "curves.png", {color: cells[color] for color, rows in histories.items() if len(rows)})


def measured() -> dict[int, CellPage]:
    """Colour -> cell, of those with a number: as on the page."""
    places = Places(OUT.parent)
    return dict(enumerate(read_pages(load_params(places.params), places)[0].measured))


def save(figure: Figure, name: str, cells: dict[int, CellPage]) -> None:
    """Write pictures/`name` with the names of the cells and, as its description, what it was drawn from."""
    for color, cell in cells.items():
        figure.axes[0].plot(
            [], [], color=COLORS[color % len(COLORS)], linewidth=4, label=cell.name.removeprefix("camvid_")
        )
    figure.legend(loc="outside right upper", frameon=False)
    figure.set_size_inches(8, min(figure.get_figheight(), 7))
    OUT.mkdir(exist_ok=True)
    figure.savefig(OUT / name, dpi=110, facecolor="white", metadata={"Software": None, "Description": source(cells)})
    print(OUT / name)


def source(cells: dict[int, CellPage]) -> str:
    """The scores of the cells, which tell whether a picture is of today's."""
    return " ".join(f"{cell.name}={cell.row['mIoU']}" for cell in cells.values())


if __name__ == "__main__":
    run_command(main)
