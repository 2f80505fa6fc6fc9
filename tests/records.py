"""A folder as it is after a few cells were trained and evaluated, made without training one."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from deeplab.config import without_defaults
from deeplab.counts import gather, write_counts
from deeplab.metrics import score
from pipeline.results.records import current_code
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.settings.yaml import read_yaml
from pipeline.stages import tables
from pipeline.training.facts import flat_settings

ROOT = Path(__file__).parents[1]
CELL, OTHER = "shapes_resnet18_os8", "shapes_resnet18_os16"
STARTED = "2026-01-02T03:04:05+00:00"


class Folder:
    """A working folder with two cells of the demo data set; `measure` fills in a cell's files."""

    def __init__(self, path: Path, blank_database: Path | None = None) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
        if blank_database:
            shutil.copyfile(blank_database, path / "mlflow.db")
        self.raw = read_yaml(ROOT / "params.yaml")
        self.raw["grid"] = {name: self.raw["grid"][name] for name in (CELL, OTHER)}
        # Numbers of its own, so that the demo may change.
        self.raw["recipes"]["shapes"].update(crop=[64, 64], resize=[96, 64], lr=0.02, batch_size=16, epochs=4)
        self.raw["datasets"]["shapes"]["images"] = {"train": 320, "val": 64}
        self.write_params()
        self.prepare("as first prepared")

    def write_params(self) -> None:
        """JSON is YAML."""
        (self.path / "params.yaml").write_text(json.dumps(self.raw))

    @property
    def params(self):
        return load_params(self.path / "params.yaml")

    def prepare(self, content: str) -> None:
        """A store of which only the manifest's hash counts."""
        manifest = self.path / "data" / "shapes" / "manifest.json"
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(content)
        self.data = hashlib.sha256(content.encode()).hexdigest()

    def fingerprint(self, cell: str) -> dict[str, str]:
        params = self.params
        code = current_code(params, Places(self.path), cell)
        return {"cell": params.cell(cell).fingerprint, "data": self.data, "code": code}

    def weights(self, cell: str, seed: int) -> dict[str, str]:
        return {"file": f"seed{seed}.safetensors", "sha256": hashlib.sha256(f"{cell}{seed}".encode()).hexdigest()}

    def measure(self, cell: str, *scores: float, images: tuple[int, int] = (320, 64)) -> None:
        """Write what `evaluate` leaves behind: one mIoU for each seed of params.yaml."""
        params = self.params
        seeds = {
            str(seed): {"mIoU": miou, "mIoU_low": miou - 0.01, "mIoU_high": miou + 0.02}
            | {"pixel_accuracy": 0.9, "mean_accuracy": 0.8, "classes_evaluated": 3}
            for seed, miou in zip(params.runs[cell], scores, strict=True)
        }
        self.write(
            f"reports/records/shapes/{cell}.json",
            {
                "cell": cell,
                "dataset": "shapes",
                "images": dict(zip(("train", "val"), images, strict=True)),
                "protocols": {name: without_defaults(protocol) for name, protocol in params.protocols.items()},
                "seeds": {seed: dict.fromkeys(params.protocols, values) for seed, values in seeds.items()},
                "fingerprint": self.fingerprint(cell),
                "weights": {seed: self.weights(cell, int(seed)) for seed in seeds},
            },
        )

    def train(self, cell: str, *seeds: int) -> None:
        """Write what `train` leaves behind, without weights."""
        facts = {str(seed): self.facts(cell, seed) | {"weights": self.weights(cell, seed)} for seed in seeds or (0,)}
        self.write(f"runs/{cell}/run.json", {"cell": cell, "dataset": "shapes", "seeds": facts})
        rows = [[seed, step, 0, 1 / step, 0.01, ""] for seed in seeds or (0,) for step in (20, 40, 60)]
        self.write_csv(
            f"runs/{cell}/history.csv", ["seed", "step", "epoch", "train/loss", "train/lr", "val/mIoU"], rows
        )

    def facts(self, cell: str, seed: int = 0) -> dict[str, object]:
        return {
            "cell": cell,
            "dataset": "shapes",
            "seed": seed,
            "started": STARTED,
            "seconds": 12.5,
            "iterations": 60,
            "images_per_second": 99.5,
            "device": "cpu",
            "torch": "2.15.0",
            "commit": "0123abcd",
            "dirty": False,
            "parameters": 1234,
            "fingerprint": self.fingerprint(cell),
            "settings": flat_settings(self.params.cell(cell), seed),
        }

    def evaluate(self, cell: str, *seeds: int) -> None:
        """Write the plots and overlays of `evaluate`; the last of three classes did not occur."""
        ious = (("circle", 0.25, 80), ("square", 0.75, 20), ("star", "", 0))
        keys = [(seed, protocol) for seed in seeds or (0,) for protocol in ("single_scale", "another")]
        self.write_csv(
            f"reports/plots/{cell}/classes.csv",
            ["seed", "protocol", "class", "IoU", "accuracy", "pixels"],
            [[*key, name, iou, iou, pixels] for key in keys for name, iou, pixels in ious],
        )
        self.write_csv(
            f"reports/plots/{cell}/confusion.csv",
            ["seed", "protocol", "truth", "predicted", "pixels", "share"],
            [
                [*key, truth, predicted, 9, 0.5]
                for key in keys
                for truth in ("circle", "square")
                for predicted in ("circle", "star")
            ],
        )
        for number in range(10):
            overlay = self.path / f"reports/figures/{cell}/{number}_image.jpg"
            overlay.parent.mkdir(parents=True, exist_ok=True)
            overlay.write_bytes(b"a picture")

    def write(self, path: str, value: object) -> None:
        (self.path / path).parent.mkdir(parents=True, exist_ok=True)
        (self.path / path).write_text(json.dumps(value))

    def write_csv(self, path: str, head: list[str], rows: list[list[object]]) -> None:
        (self.path / path).parent.mkdir(parents=True, exist_ok=True)
        with (self.path / path).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([head, *rows])

    def tables(self) -> str:
        """Run the stage in this folder, which must be the working folder, and return the table."""
        tables.run("shapes")
        return Path("reports/tables/shapes.md").read_text(encoding="utf-8")


def blank_database(base: Path) -> Path:
    """An MLflow database without experiments: creating one takes six seconds, a copy none."""
    path = base / "blank.db"
    if not path.exists():
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def measured(folder, cell, *skills, images=60):
    """A record of `cell` and the counts behind it: per seed the share of pixels that are right, which varies by image."""
    runs = {}
    for seed, skill in zip(folder.params.runs[cell], skills, strict=True):
        rng = np.random.default_rng(0)  # the same images for every cell
        truth = rng.integers(1, 400, (images, 3))
        right = np.rint(truth * np.clip(skill + rng.normal(0, 0.1, (images, 1)), 0, 1)).astype(int)
        matrices = [
            np.diag(hits) + np.roll(np.diag(all_ - hits), 1, axis=1) for hits, all_ in zip(right, truth, strict=True)
        ]
        counts = gather(iter(matrices), [f"{index}" for index in range(images)], ["a", "b", "c"])
        runs |= {(seed, protocol): counts for protocol in folder.params.protocols}
    write_counts(Path(f"reports/images/shapes/{cell}.npz"), runs)
    protocol = next(iter(folder.params.protocols))
    folder.measure(cell, *(round(score(runs[seed, protocol].matrix).mean_iou, 6) for seed in folder.params.runs[cell]))
