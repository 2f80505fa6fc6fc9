"""Draw the two pictures of README.md: `python pictures.py`.

pictures/classes.png shows the IoU of each class, from the committed reports/plots. pictures/curves.png shows the mIoU
during training, from runs/, and is left as it is when no run with such values is here.
"""

import hashlib
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from pipeline.pictures import charts
from pipeline.pictures.colors import COLORS
from pipeline.settings.places import Places

OUT = Path(__file__).parent / "pictures"
PLACES = Places(OUT.parent)


def main() -> None:
    colors = measured()
    scores = {color: mean_scores(classes_of(name)) for color, name in colors.items()}
    order = list(pd.DataFrame(scores).mean(axis=1).sort_values(ascending=False).index)
    save(charts.class_bars(scores, order), "classes.png", colors)
    runs = {color: PLACES.history(name) for color, name in colors.items()}
    histories = {color: pd.read_csv(path) for color, path in runs.items() if path.exists()}
    histories = {
        color: rows.assign(mIoU=100 * rows["val/mIoU"]).dropna(subset="mIoU") for color, rows in histories.items()
    }
    figure = charts.curves(histories, "mIoU", "mIoU, %")
    if figure:
        save(figure, "curves.png", {color: colors[color] for color, rows in histories.items() if len(rows)})


def measured() -> dict[int, str]:
    """Colour -> cell, of those with a number in the table: the colours of the page."""
    return dict(enumerate(pd.read_csv(PLACES.sheet("camvid")).dropna(subset="mIoU")["cell"]))


def classes_of(cell: str) -> Path:
    return PLACES.plots(cell) / "classes.csv"


def mean_scores(path: Path) -> dict[str, float]:
    """Class -> IoU in percent by the first protocol, the mean over the seeds."""
    rows = pd.read_csv(path)
    return dict(100 * rows[rows["protocol"] == rows["protocol"][0]].groupby("class", sort=False)["IoU"].mean())


def save(figure: Figure, name: str, cells: dict[int, str]) -> None:
    """Write pictures/`name` with the names of the cells and, as its description, what it was drawn from."""
    for color, cell in cells.items():
        figure.axes[0].plot([], [], color=COLORS[color % len(COLORS)], linewidth=4, label=cell.removeprefix("camvid_"))
    figure.legend(loc="outside right upper", frameon=False)
    figure.set_size_inches(8, min(figure.get_figheight(), 7))
    OUT.mkdir(exist_ok=True)
    figure.savefig(OUT / name, dpi=110, facecolor="white", metadata={"Software": None, "Description": source(cells)})
    print(OUT / name)


def source(cells: dict[int, str]) -> str:
    """A hash of the scores of the cells."""
    return hashlib.sha256(b"".join(classes_of(cell).read_bytes() for cell in cells.values())).hexdigest()


if __name__ == "__main__":
    main()
