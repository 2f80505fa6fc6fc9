"""A working folder as after a whole grid, with random numbers that nobody can take for results: no IoU reaches 12 %."""

import csv
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.pictures.panels import write_parts
from pipeline.results.records import Result, Row
from pipeline.results.table import markdown, sheet
from pipeline.settings.params import load_params

ROOT = Path(__file__).parents[1]
CLASSES = {"voc": 21, "ade20k": 150, "cityscapes": 19, "shapes": 6}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class FakeGrid:
    """The files that a page is made of, below `path`, for all cells of `params` (this repository's, if not given)."""

    def __init__(
        self, path: Path, params: str | None = None, points: int = 30, size: tuple[int, int] = (12, 16)
    ) -> None:
        self.path, self.points, self.size = path, points, size
        path.mkdir(exist_ok=True, parents=True)
        self.params_file = path / "params.yaml"
        self.params_file.write_text(params or (ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
        self.params = load_params(self.params_file)
        self.rng = np.random.default_rng(0)
        (path / "reports").mkdir()
        shutil.copyfile(ROOT / "reports/reference.csv", path / "reports/reference.csv")

    def names(self, dataset: str) -> list[str]:
        return [name for name, cell in self.params.cells.items() if cell.dataset == dataset]

    def fill(
        self, *skip: str, scores: Mapping[str, float] | None = None, classes: list[str] | None = None
    ) -> "FakeGrid":
        """Measure all cells but `skip`; `scores` are mIoU that are not to be random, `classes` their names."""
        for dataset in self.params.datasets:
            names = classes or [f"fake class {number}" for number in range(CLASSES.get(dataset, 4))]
            rows = []
            for name in self.names(dataset):
                results = () if name in skip else self.measure(name, names, (scores or {}).get(name))
                cell, config = self.params.cells[name], self.params.datasets[dataset]
                own = {"overrides": self.params.overrides[name], "results": results, "published": ()}
                rows.append(Row(name=name, cell=cell, dataset=config, card=None, **own))
            self.table(dataset, rows)
            self.card(dataset, names)
        return self

    def table(self, dataset: str, rows: list[Row]) -> None:
        folder = self.path / "reports/tables"
        folder.mkdir(exist_ok=True)
        (folder / f"{dataset}.md").write_text(markdown(rows), encoding="utf-8")
        (folder / f"{dataset}.csv").write_text(sheet(rows), encoding="utf-8")

    def measure(self, name: str, classes: list[str], score: float | None) -> tuple[Result, ...]:
        """Write what train and evaluate leave of a cell, and return its results."""
        cell, rng = self.params.cells[name], self.rng
        config = self.params.datasets[cell.dataset]
        protocol = next(iter(self.params.protocols))
        facts, history, rows, pairs, results = {}, [], [], [], []
        for seed in self.params.runs[name]:
            ious = rng.uniform(0, 0.12, len(classes)) if score is None else np.full(len(classes), score)
            scores = {"mIoU": ious.mean(), "pixel_accuracy": 0.1, "mean_accuracy": 0.1, "classes_evaluated": 3.0}
            sha256 = digest(f"{name}{seed}")
            weights = {"file": f"seed{seed}.safetensors", "sha256": sha256}
            prints = {"cell": cell.fingerprint, "data": digest(cell.dataset), "code": "c0de", "protocol": "9"}
            results.append(
                Result(cell=name, seed=seed, scores=scores, images=config.images, fingerprint=prints, weights=weights)
            )
            facts[str(seed)] = {
                "weights": weights, "seconds": 12345.0, "images_per_second": 1.5, "iterations": 20 * self.points, "peak_memory": 5e9,
                "parameters": 1234567, "flops": 7.5e9, "device": "no device", "torch": "2.15.0", "commit": "f" * 40, "dirty": False,
                "started": "2000-01-01T00:00:00+00:00",
            }  # fmt: skip
            steps = 20 * np.arange(1, self.points + 1)
            loss = 3 / np.sqrt(steps) + rng.uniform(0, 0.2, self.points)
            history += [
                [
                    seed,
                    step,
                    0,
                    f"{value:.6f}",
                    0.01 * (1 - step / 20 / (self.points + 1)),
                    0.05 if step % 200 == 0 else "",
                ]
                for step, value in zip(steps.tolist(), loss, strict=True)
            ]
            rows += [
                [seed, protocol, title, f"{iou:.9f}", f"{iou:.9f}", int(1000 / (place + 1)) + 1]
                for place, (title, iou) in enumerate(zip(classes, ious, strict=True))
            ]
            shares = rng.dirichlet(np.full(len(classes), 0.1), len(classes))
            pairs += [
                [seed, protocol, classes[true], classes[predicted], 9, f"{shares[true, predicted]:.6f}"]
                for true, predicted in np.argwhere(shares > 1e-4)
            ]
        self.json(f"runs/{name}/run.json", {"seeds": facts})
        self.csv(f"runs/{name}/history.csv", ["seed", "step", "epoch", "train/loss", "train/lr", "val/mIoU"], history)
        self.csv(f"reports/plots/{name}/classes.csv", ["seed", "protocol", "class", "IoU", "accuracy", "pixels"], rows)
        self.csv(
            f"reports/plots/{name}/confusion.csv",
            ["seed", "protocol", "truth", "predicted", "pixels", "share"],
            pairs,
        )
        self.parts(name, classes, results[0].weights["sha256"])
        return tuple(results)

    def parts(self, name: str, classes: list[str], weights: str) -> None:
        """Eight images that all cells show, and four worst and best ones."""
        folder = self.path / f"reports/figures/{name}/parts"
        folder.mkdir(parents=True)
        palette = tuple(
            (int(r), int(g), int(b)) for r, g, b in np.random.default_rng(7).integers(0, 255, (len(classes), 3))
        )
        images = []
        for place in range(16):
            why = "spread" if place < 8 else "worst" if place < 12 else "best"
            same = np.random.default_rng(place)  # the image and its truth are the same for all cells
            truth = blocks(same, len(classes), self.size)
            image = (np.array(palette, np.uint8)[truth] // 2 + same.integers(0, 60, (*self.size, 3))).astype(np.uint8)
            predicted = np.where(blocks(self.rng, 3, self.size) > 0, truth, blocks(self.rng, len(classes), self.size))
            write_parts(folder, f"{place}", image, truth, predicted.astype(np.uint8), palette)
            images.append({"id": f"fake/{place}", "index": place, "stem": f"{place}", "why": why, "mIoU": 0.01 * place})
        about = {"weights": weights, "classes": classes, "palette": palette, "images": images}
        self.json(f"reports/figures/{name}/parts/about.json", about)

    def card(self, dataset: str, classes: list[str]) -> None:
        spread = {"min": 1, "median": 2, "max": 3}
        split = {"images": 3, "published": 3, "width": spread, "height": spread, "ignored_share": 0.05}
        kinds = [
            {"name": name, "color": [1, 2, 3], "pixel_share": {"val": 0.1}, "images": {"val": 1}} for name in classes
        ]
        self.json(
            f"reports/data/{dataset}/card.json",
            {"dataset": dataset, "fingerprint": digest(dataset), "splits": {"val": split}, "classes": kinds},
        )
        sheet = self.path / f"data/{dataset}/sheet.png"
        sheet.parent.mkdir(parents=True)
        Image.fromarray(blocks(self.rng, 250, (4 * self.size[0], 4 * self.size[1]))).save(sheet)

    def json(self, path: str, value: object) -> None:
        (self.path / path).parent.mkdir(parents=True, exist_ok=True)
        (self.path / path).write_text(json.dumps(value), encoding="utf-8")

    def csv(self, path: str, head: list[str], rows: list[list[object]]) -> None:
        (self.path / path).parent.mkdir(parents=True, exist_ok=True)
        with (self.path / path).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([head, *rows])


def blocks(rng: np.random.Generator, kinds: int, size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) of rectangles."""
    coarse = rng.integers(0, kinds, (4, 4), dtype=np.uint8)
    tall, wide = -(-size[0] // 4), -(-size[1] // 4)
    return np.kron(coarse, np.ones((tall, wide), np.uint8))[: size[0], : size[1]]
