"""What a finished training leaves: weights that say what they are, a history, and the facts of the run."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab.config import Cell
from deeplab.errors import DataError

if TYPE_CHECKING:
    from torch import nn

    from deeplab.store import Store


def save_weights(network: "nn.Module", path: Path, store: "Store", cell: Cell, fingerprint: dict[str, str]) -> None:
    """Write the network as safetensors; its metadata says what it was trained with, and how to draw what it predicts.

    `store` is the data set's, for its classes and palette; `fingerprint` is that of settings, data and code.
    """
    from safetensors.torch import save

    from deeplab.checkpoint import write_durably

    metadata = {
        **fingerprint,
        "dataset": cell.dataset,
        "classes": list(store.classes),
        "palette": [list(color) for color in store.palette],
        "settings": asdict(cell),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    # One key: safetensors writes several in another order each time, and the same weights shall be the same file.
    write_durably(path, save(tensors, {"about": json.dumps(metadata, sort_keys=True)}))


def publish(name: str, dataset: str, work: dict[int, Path], out: Path) -> None:
    """Put the finished seeds, each in its folder of `work`, where DVC expects them."""
    from deeplab.checkpoint import write_durably

    weights = out / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    size = sum((folder / "weights.safetensors").stat().st_size for folder in work.values())
    require_space(out, needed=2 * size)  # and DVC's copy
    facts: dict[str, Any] = {}
    rows: list[str] = []
    for seed, folder in work.items():
        content, own = (folder / "weights.safetensors").read_bytes(), read_facts(folder / "facts.json")
        if hashlib.sha256(content).hexdigest() != own.get("weights", {}).get("sha256"):
            raise DataError(f"{folder}: its weights are damaged. Remove this folder to train the seed again.")
        write_durably(weights / f"seed{seed}.safetensors", content)
        facts[str(seed)] = own
        head, *lines = (folder / "history.csv").read_text(encoding="utf-8").splitlines()
        rows += [f"seed,{head}"] * (not rows) + [f"{seed},{line}" for line in lines]
    write_durably(out / "history.csv", ("\n".join(rows) + "\n").encode())
    write_json(out / "run.json", {"cell": name, "dataset": dataset, "seeds": facts})
    print(f"{name}: weights in {weights}")


def read_facts(path: Path) -> dict[str, Any]:
    """What a training wrote down about itself; nothing where it has not yet."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise DataError(f"{path}: damaged. Remove its folder to train the seed again.")
    return facts


def require_space(folder: Path, needed: int) -> None:
    """Raise OSError before the work rather than after it when the disk cannot hold the result."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{folder}: {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB for checkpoints and weights")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all."""
    from deeplab.checkpoint import write_durably

    write_durably(path, (json.dumps(value, indent=2) + "\n").encode())
