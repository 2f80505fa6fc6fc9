"""What a training depends on, and what it records: inputs.json and facts.json for each seed, run.json for the cell.

The keys of these files are defined here and nowhere else.
"""

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from deeplab.config import Cell, digest
from deeplab.errors import DataError
from pipeline.files import readable

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a network depends on. Compared before and after, because DVC records inputs as they are afterwards."""

    cell: Cell
    seeds: tuple[int, ...]
    data: str  # SHA-256 of the manifest
    code: str
    starts: tuple[str, ...] = ()  # with `init`: SHA-256 of the file that each seed starts from

    def start(self, seed: int) -> str:
        """SHA-256 of the file that `seed` starts from; empty without `init`."""
        return dict(zip(self.seeds, self.starts, strict=False)).get(seed, "")

    def fingerprint(self, seed: int) -> str:
        """SHA-256 over everything that the weights of `seed` depend on."""
        return digest([self.cell.fingerprint, seed, self.data, self.code, *filter(None, [self.start(seed)])])

    def plain(self) -> dict[str, Any]:
        """The form of inputs.json."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content


class Content(BaseModel):
    """A part of a file. Unknown keys are ignored: another version may have written them."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    def plain(self) -> dict[str, Any]:
        """The form of the file: what was given, in the order of the fields."""
        return self.model_dump(mode="json", exclude_unset=True)


class WeightsFile(Content):
    """The name and the hash of a file of weights."""

    file: str
    sha256: str


class Chosen(Content):
    """What the validation split decided, with `train.keep: best` or `train.patience`."""

    steps: int  # done
    step: int  # after which the weights were taken
    miou: float | None = None  # of these weights on the validation split: the highest of several, so optimistic


class InitFacts(Content):
    """The file that a training started from, and which tensors were taken."""

    source: str  # a cell, a file or a repository, as the tables show it
    sha256: str
    taken: int  # tensors
    not_taken: dict[str, str]  # tensor of the network -> why
    unused: tuple[str, ...]  # tensors of the file that the network does not have


class Spot(Content):
    """A pair of states of a training: of the first one a file, of the second one its hash (deeplab/spots.py)."""

    start: int  # steps done before the first state
    stop: int
    sha256: str  # of the file
    after: str  # SHA-256 that the file of the second state would have
    losses: tuple[float, ...]  # of the steps between

    def file(self, seed: int) -> str:
        """Its name beside the weights."""
        return f"spots/seed{seed}-step{self.start}.safetensors"


class Facts(Content):
    """What is known of the training of one seed. Files of older versions lack some of the optional fields."""

    cell: str
    dataset: str
    seed: int
    started: str  # in UTC, of the last stretch without an interruption
    iterations: int
    parameters: int | None = None
    host: str | None = None
    device: str | None = None
    torch: str | None = None
    timm: str | None = None
    processor: str | None = None
    versions: dict[str, str] = {}  # of what can move a bit; `packages` is the hash of the environment
    commit: str | None = None
    dirty: bool | None = None
    why_unknown: str | None = None  # of the commit
    fingerprint: dict[str, str]  # cell, data, code
    settings: dict[str, Any]  # as `flat_settings` gives them
    departs: str | None = None  # from the published recipe
    init: InitFacts | None = None
    flops: int | None = None  # of one crop
    gpus_per_cell: tuple[int, ...] = ()  # each number of processes that a stretch of this training had
    class_weights: tuple[float, ...] | None = None  # with `train.class_weights`
    # Known at the end.
    seconds: float | None = None  # of the last stretch
    images_per_second: float | None = None
    peak_memory: int | None = None  # bytes
    chosen: Chosen | None = None
    weights: WeightsFile | None = None
    spots: tuple[Spot, ...] = ()


class CellFacts(Content):
    """The content of run.json."""

    cell: str
    dataset: str
    seeds: dict[str, Facts]


def read_facts(path: Path) -> Facts | None:
    """The facts of a seed in its folder; None before they are written. Raises DataError for a damaged file."""
    try:
        return Facts.model_validate_json(path.read_bytes()) if path.exists() else None
    except ValidationError:
        raise DataError(f"{path}: damaged. Remove its folder to train the seed again.") from None


def read_spots(folder: Path, steps: int, count: int) -> tuple[Spot, ...]:
    """The finished ones of the `count` spots of a training of `steps` steps, in the folder of its seed."""
    from deeplab.spots import planned, spot_file

    files = [spot_file(folder / "spots", start) for start, _ in planned(steps, count)]
    return tuple(Spot.model_validate_json(file.read_bytes()) for file in files if file.exists())


def read_run(path: Path) -> dict[str, Facts]:
    """The facts of each seed in the run.json of a cell; nothing where there is none. Raises DataError for a damaged
    file.
    """
    try:
        return CellFacts.model_validate_json(path.read_bytes()).seeds if path.exists() else {}
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(key) for key in problem["loc"])
        what = f"{where}: {problem['msg']}".removeprefix(": ")
        remedy = f"Run: dvc checkout --force train@{path.parent.name}"
        raise DataError(f"{path}: damaged, or edited by hand ({what}). {remedy}") from None


def flat_settings(cell: Cell, seed: int) -> dict[str, Any]:
    """The settings of a cell on one level, as facts and the params of a run in MLflow have them."""
    sections = json.loads(json.dumps(asdict(cell)))
    flat = {key: value for name in ("model", "recipe", "train") for key, value in sections[name].items()}
    start = {"init": cell.init.label} if cell.init else {}
    return {"dataset": cell.dataset, "seed": seed, **start, **flat}


def explain_restart(folder: Path, seed: int, inputs: Inputs) -> None:
    """Print what changed when there is unfinished work of this seed that cannot be used."""
    if folder.exists():
        return
    for other in sorted(folder.parent.glob(f"seed{seed}-*/inputs.json"), key=lambda path: path.stat().st_mtime)[-1:]:
        with readable(other, "Remove its folder to train the seed again."):
            changed = differences(dict(json.loads(other.read_bytes())), inputs.plain())
        print(f"starting over: {', '.join(changed)} changed since {other.parent} was begun", flush=True)


def differences(before: Any, after: Any, place: str = "") -> list[str]:
    """Where two nested settings differ, as `model.dropout (0.1 -> 0.2)`."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [
            found for key in keys for found in differences(before.get(key), after.get(key), f"{place}.{key}".strip("."))
        ]
    if before == after:
        return []
    return [place if place in ("data", "code") else f"{place} ({before} -> {after})"]


def forward_flops(network: "nn.Module", size: tuple[int, int]) -> int:
    """Floating-point operations of `network` on one image of `size` (height, width), two for each multiply-add.

    torch counts them in evaluation mode on a copy without values. Nothing is computed and no random number is drawn.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    shapes = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes(torch.empty(1, 3, *size, device="meta"))
    return int(counter.get_total_flops())
