"""What a finished training leaves: weights with their description, a history, and the facts of the run."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab.config import Cell
from deeplab.errors import DataError
from pipeline.training.facts import CellFacts, Facts, read_facts

if TYPE_CHECKING:
    from torch import nn

    from deeplab.store import Store


def save_weights(network: "nn.Module", path: Path, store: "Store", cell: Cell, origin: dict[str, Any]) -> None:
    """Write the network as safetensors. The metadata holds its settings, and the classes and colours of the data set.

    `origin` has the fingerprints of settings, data and code, and what the training started from.
    """
    from safetensors.torch import save

    from deeplab.checkpoint import write_durably

    metadata = {
        **origin,
        "dataset": cell.dataset,
        "classes": list(store.classes),
        "palette": [list(color) for color in store.palette],
        "settings": asdict(cell),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    # One key, because safetensors writes several in another order each time. The same weights must be the same file.
    write_durably(path, save(tensors, {"about": json.dumps(metadata, sort_keys=True)}))


def publish(name: str, dataset: str, work: dict[int, Path], out: Path) -> None:
    """Copy the finished seeds, each from its folder in `work`, to where DVC expects them."""
    from deeplab.checkpoint import write_durably
    from deeplab.spots import state_file

    weights = out / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    size = sum(file.stat().st_size for folder in work.values() for file in folder.rglob("*.safetensors"))
    require_space(out, needed=2 * size)  # and DVC's copy
    seeds: dict[str, Facts] = {}
    rows: list[str] = []
    for seed, folder in work.items():
        facts = read_facts(folder / "facts.json")
        assert facts is not None
        assert facts.weights is not None  # the seed is finished
        spots = [(spot.file(seed), state_file(folder / "spots", spot.start), spot.sha256) for spot in facts.spots]
        for title, file, sha256 in [
            (f"seed{seed}.safetensors", folder / "weights.safetensors", facts.weights.sha256),
            *spots,
        ]:
            content = file.read_bytes()
            if hashlib.sha256(content).hexdigest() != sha256:
                raise DataError(f"{folder}: its weights are damaged. Remove this folder to train the seed again.")
            (weights / title).parent.mkdir(exist_ok=True)
            write_durably(weights / title, content)
        seeds[str(seed)] = facts
        head, *lines = (folder / "history.csv").read_text(encoding="utf-8").splitlines()
        if not rows:
            rows.append(f"seed,{head}")
        rows += [f"{seed},{line}" for line in lines]
    write_durably(out / "history.csv", ("\n".join(rows) + "\n").encode())
    write_json(out / "run.json", CellFacts(cell=name, dataset=dataset, seeds=seeds).plain())
    print(f"{name}: weights in {weights}")


def require_space(folder: Path, needed: int) -> None:
    """Raise OSError when the disk cannot hold the result, before the work instead of after it."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{folder}: {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB for checkpoints and weights")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically and durably."""
    from deeplab.checkpoint import write_durably

    write_durably(path, (json.dumps(value, indent=2) + "\n").encode())
