"""Results in records, and what they must agree with to be shown."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from deeplab.config import Cell, digest
from deeplab.errors import DataError
from pipeline.files import BROKEN
from pipeline.settings.params import Params
from pipeline.training.provenance import code_fingerprint

EQUIVALENT_CODE = "equivalent_code.txt"  # fingerprints of older code, proven to give the same numbers, and why

SCORES = ("mIoU", "pixel_accuracy", "mean_accuracy", "classes_evaluated")
INTERVAL = ("mIoU_low", "mIoU_high")  # beside them where there are images enough: 95 %, over images, not over seeds
FINGERPRINTS = ("cell", "data", "code", "protocol")

Place = tuple[str, int]  # cell and seed


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one seed of a cell scored under the protocol that fills the tables."""

    cell: str
    seed: int
    scores: dict[str, float]  # SCORES and INTERVAL, as shares; classes_evaluated is a number
    images: dict[str, int]  # split -> how many
    fingerprint: dict[str, str]  # FINGERPRINTS
    weights: dict[str, str]  # file, sha256
    run: str = ""  # its id in MLflow

    @property
    def key(self) -> str:
        """Hash of the content."""
        return digest({name: value for name, value in asdict(self).items() if name != "run"})


def read_results(
    cells: dict[str, Cell], params: Params, records: Path, reports: Path, manifest: Path
) -> tuple[dict[Place, Result], dict[str, str]]:
    """The results in `records` that are of today's settings, data and code, and for each other cell why it has none."""
    codes = accepted_code(reports / EQUIVALENT_CODE)
    results: dict[Place, Result] = {}
    reasons: dict[str, str] = {}
    data = manifest_fingerprint(manifest)
    for name, cell in cells.items():
        path = records / f"{name}.json"
        if not path.exists():
            reasons[name] = f"not measured yet. Run: dvc repro {params.stage('evaluate', name)}"
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            check_record(found, name, reports / "metrics" / f"{name}.json")
            if changed := out_of_date(found, cell, params, data, codes):
                reasons[name] = f"{path} is of other {changed}. Run: dvc repro {params.stage('evaluate', name)}"
            else:
                results |= {(name, result.seed): result for result in results_in(found, params)}
        except BROKEN as error:
            remedy = f"Run: dvc repro -f {params.stage('evaluate', name)}"
            raise DataError(f"{path}: not as evaluate writes it ({error!r}). {remedy}") from None
    return results, reasons


def accepted_code(path: Path) -> set[str]:
    """The fingerprints of today's training code and of those that `path` lists, one a line before its reason."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {code_fingerprint(), *(line.split()[0] for line in lines if line.strip() and not line.startswith("#"))}


def check_record(found: dict[str, Any], name: str, metrics: Path) -> None:
    """Raise ValueError for what `evaluate` cannot have written: another cell, no share, not what `metrics` says."""
    if found["cell"] != name:
        raise ValueError(f"it is of the cell {found['cell']}")
    if not found["protocols"]:
        raise ValueError("no protocols")
    main_protocol = next(iter(found["protocols"]))
    for score in SCORES:
        values = [scores[main_protocol][score] for scores in found["seeds"].values()]
        limit = 1.0 if score != "classes_evaluated" else float("inf")
        if not all(0 <= value <= limit for value in values):
            raise ValueError(f"{score} is {values}")
        said = json.loads(metrics.read_text(encoding="utf-8")).get(score) if metrics.exists() else None
        if said is not None and abs(said - fmean(values)) > (1e-5 if limit == 1 else 0.51):
            raise ValueError(f"{score} is {fmean(values)}, but {said} in {metrics}")
    for scores in (scores[main_protocol] for scores in found["seeds"].values()):
        if not scores.get(INTERVAL[0], 0) <= scores["mIoU"] <= scores.get(INTERVAL[1], 1):
            raise ValueError(f"mIoU is {scores['mIoU']}, and not between {' and '.join(INTERVAL)}")
    if not all(isinstance(count, int) for count in found["images"].values()):
        raise ValueError(f"images is {found['images']}")
    if not all({"file", "sha256"} <= weights.keys() for weights in found["weights"].values()):
        raise ValueError(f"weights is {found['weights']}")


def out_of_date(found: dict[str, Any], cell: Cell, params: Params, data: str | None, codes: set[str]) -> str:
    """What of a record is not today's; empty when all is."""
    same = {
        "settings": found["fingerprint"]["cell"] == cell.fingerprint,
        "data": data in (None, found["fingerprint"]["data"]),
        "code": found["fingerprint"]["code"] in codes,
        "protocols": digest(found["protocols"]) == digest(protocol_settings(params)),
        "seeds": {str(seed) for seed in params.seeds} <= found["seeds"].keys(),
    }
    return ", ".join(name for name, agrees in same.items() if not agrees)


def results_in(found: dict[str, Any], params: Params) -> Iterator[Result]:
    """One result for each of today's seeds, under the protocol that comes first today."""
    main_protocol = next(iter(params.protocols))
    fingerprint = {part: found["fingerprint"][part] for part in ("cell", "data", "code")}
    for seed in params.seeds:
        yield Result(
            cell=found["cell"],
            seed=seed,
            scores=numbers_in(found["seeds"][str(seed)][main_protocol]),
            images=found["images"],
            fingerprint={**fingerprint, "protocol": protocol_fingerprint(params)},
            weights=found["weights"][str(seed)],
        )


def numbers_in(scores: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """SCORES, and INTERVAL if it is there; KeyError without one of SCORES."""
    held = {score: float(scores[prefix + score]) for score in SCORES}
    return held | {end: float(scores[prefix + end]) for end in INTERVAL if prefix + end in scores}


def todays_fingerprint(cell: Cell, params: Params, data: str) -> dict[str, str]:
    """FINGERPRINTS that a result must have to be shown, whoever measured it."""
    return {
        "cell": cell.fingerprint,
        "data": data,
        "code": code_fingerprint(),
        "protocol": protocol_fingerprint(params),
    }


def manifest_fingerprint(manifest: Path) -> str | None:
    """SHA-256 of a store's manifest; None when there is no store."""
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else None


def protocol_settings(params: Params) -> dict[str, Any]:
    return {name: asdict(protocol) for name, protocol in params.protocols.items()}


def protocol_fingerprint(params: Params) -> str:
    """SHA-256 of the protocol that fills the tables."""
    name, settings = next(iter(protocol_settings(params).items()))
    return digest({name: settings})
