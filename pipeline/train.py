"""Train one cell of the grid, once per seed, and write weights, history and the facts of the run.

A run that was interrupted goes on from its newest checkpoint when the same command is given again. Unfinished work lies
in the resume folder, outside of what DVC deletes before it runs a stage, under a name that holds the fingerprint of
settings, data and code: with any of them changed the run starts over, and with the change undone it goes on.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab.config import Cell, digest
from deeplab.errors import SettingsError
from pipeline.errors import ParamsError, StoppedError, run_command
from pipeline.params import PARAMS, Params, load_params
from pipeline.process import die_with_parent, locked, signals_noted
from pipeline.progress import median_speed, reporter
from pipeline.provenance import code_fingerprint, file_sha256, git_state, machine

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deeplab.store import Store


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a network depends on. Compared before and after, for DVC records inputs as they are afterwards."""

    cell: Cell
    seeds: tuple[int, ...]
    data: str  # SHA-256 of the manifest
    code: str

    def fingerprint(self, seed: int) -> str:
        """SHA-256 over everything that seed's weights depend on."""
        return digest([self.cell.fingerprint, seed, self.data, self.code])


def run(name: str, data: Path, pretrained: Path, resume: Path, out: Path, params_file: Path = PARAMS) -> None:
    """Train the cell `name` on the store `data` and write `out`/{weights/seed*.safetensors, history.csv, run.json}.

    `pretrained` is where ImageNet weights may lie, `resume` where unfinished work is kept until the cell is done.
    Raises StoppedError after a signal (the state is saved), BusyError when another process trains this cell.
    """
    die_with_parent()
    params = load_params(params_file)
    params.cell(name)  # an unknown name ends here
    resume.mkdir(parents=True, exist_ok=True)
    with signals_noted() as stop, locked(resume / ".lock", name):
        from deeplab.store import Store

        store = Store(data)
        inputs = read_inputs(params, name, store.fingerprint)
        work = [resume / f"seed{seed}-{inputs.fingerprint(seed)[:12]}" for seed in params.seeds]
        for seed, folder in zip(params.seeds, work, strict=True):
            if not (folder / "weights.safetensors").exists():
                try:
                    train_seed(name, params, inputs, store, seed, folder, pretrained, stop)
                except ParamsError:
                    raise
                except SettingsError as error:  # the library knows the setting, not the cell
                    raise ParamsError(f"{params_file}: cell {name}: {error}") from None
        now = read_inputs(load_params(params_file), name, Store(data).fingerprint)
        if now != inputs:
            changed = ", ".join(differences(asdict(inputs), asdict(now)))
            raise ParamsError(
                f"{name}: {changed} changed while the cell was trained, so its result is not what the files say now. "
                f"Nothing was published. Undo the change and run the same command to publish it, or run it with the "
                f"change to train again."
            )
        publish(name, params, work, out)
    shutil.rmtree(resume)


def read_inputs(params: Params, name: str, data: str) -> Inputs:
    """The inputs of the cell `name` as the files say now."""
    return Inputs(cell=params.cell(name), seeds=params.seeds, data=data, code=code_fingerprint())


def train_seed(
    name: str,
    params: Params,
    inputs: Inputs,
    store: "Store",
    seed: int,
    folder: Path,
    pretrained: Path,
    stop: Callable[[], bool],
) -> None:
    """Train one seed in `folder`, which ends with weights.safetensors, history.csv and facts.json."""
    import torch

    from deeplab.model import DeepLabV3
    from deeplab.training import Pace, fit, total_steps
    from pipeline.cost import forward_flops, peak_memory
    from pipeline.device import select_device, set_arithmetic
    from pipeline.mirror import mirror

    cell = inputs.cell
    device = select_device(params.runtime.device)
    set_arithmetic(cell.train)
    split = store.split(cell.recipe.train_split)
    steps = total_steps(len(split), cell.recipe)
    explain_restart(folder, seed, inputs)
    torch.manual_seed(seed)
    if cell.model.pretrained:
        print(f"{name}: starting from ImageNet weights (in {pretrained}, or fetched by timm)", flush=True)
    network = DeepLabV3(cell.model, len(store.classes), pretrained)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    require_space(folder.parent, needed=5 * 4 * parameters)  # two checkpoints, one being written, and the weights
    folder.mkdir(exist_ok=True)
    facts = first_facts(name, inputs, seed, device, parameters, steps)
    facts["flops"] = forward_flops(network, cell.recipe.crop)  # of one crop
    write_json(folder / "facts.json", facts)
    write_json(folder / "inputs.json", asdict(inputs))
    print(
        f"{name} seed {seed}: {len(split)} images, {steps} iterations, {parameters:,} parameters on {facts['device']}"
    )

    runtime = params.runtime
    pace = Pace(
        workers=runtime.workers,
        log_every=runtime.log_every,
        checkpoint_every=runtime.checkpoint_every,
        validate_every=runtime.validate_every,
    )
    began = time.monotonic()
    with (
        mirror(folder, every=runtime.tracking_every),
        reporter(name, cell.recipe.batch_size, folder / "speed.csv") as report,
    ):
        finished = fit(
            network,
            split,
            cell,
            seed=seed,
            device=device,
            folder=folder,
            pace=pace,
            report=report,
            stop=stop,
            validate=lambda model: validation_miou(model, store, cell, device),
        )
    if not finished:
        raise StoppedError(f"{name}: stopped by a signal, state saved. Run the same command again to go on.")
    seconds = time.monotonic() - began
    save_weights(network, folder / "weights.safetensors", store, inputs)
    facts["seconds"] = round(seconds, 1)  # of the last, unbroken stretch
    facts["images_per_second"] = round(median_speed(folder / "speed.csv"), 2)
    facts["peak_memory"] = peak_memory(device)  # bytes
    facts["weights"] = {"file": f"seed{seed}.safetensors", "sha256": file_sha256(folder / "weights.safetensors")}
    write_json(folder / "facts.json", facts)


def validation_miou(network: "nn.Module", store: "Store", cell: Cell, device: "torch.device") -> float:
    """mIoU of the network as it is now: whole images, one scale, no flip."""
    from deeplab.config import Protocol
    from deeplab.inference import evaluate
    from deeplab.metrics import score

    protocol = Protocol(scales=(1.0,), flip=False, window=None, stride=None)
    split = store.split(cell.recipe.val_split)
    return score(evaluate(network, split, len(store.classes), cell, protocol, device)).mean_iou


def first_facts(
    name: str, inputs: Inputs, seed: int, device: "torch.device", parameters: int, steps: int
) -> dict[str, Any]:
    """What is known of a run when it starts."""
    cell = inputs.cell
    settings = {
        "dataset": cell.dataset,
        "seed": seed,
        **{
            key: value
            for section in ("model", "recipe", "train")
            for key, value in asdict(getattr(cell, section)).items()
        },
    }
    return {
        "cell": name,
        "dataset": cell.dataset,
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "iterations": steps,
        "parameters": parameters,
        **machine(device),
        **git_state(),
        "fingerprint": {"cell": cell.fingerprint, "data": inputs.data, "code": inputs.code},
        "settings": settings,
    }


def save_weights(network: "nn.Module", path: Path, store: "Store", inputs: Inputs) -> None:
    """Write the network as safetensors; its metadata says what it was trained with."""
    from safetensors.torch import save

    from deeplab.checkpoint import write_durably

    metadata = {
        "cell": inputs.cell.fingerprint,
        "data": inputs.data,
        "code": inputs.code,
        "dataset": inputs.cell.dataset,
        "classes": list(store.classes),
        "palette": [list(color) for color in store.palette],
        "settings": asdict(inputs.cell),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    # One key: safetensors writes several in another order each time, and the same weights shall be the same file.
    write_durably(path, save(tensors, {"about": json.dumps(metadata, sort_keys=True)}))


def publish(name: str, params: Params, work: list[Path], out: Path) -> None:
    """Put the finished seeds where DVC expects them."""
    weights = out / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    require_space(
        out, needed=2 * sum((folder / "weights.safetensors").stat().st_size for folder in work)
    )  # and DVC's copy
    facts: dict[str, Any] = {}
    rows: list[str] = []
    for seed, folder in zip(params.seeds, work, strict=True):
        shutil.copyfile(folder / "weights.safetensors", weights / f"seed{seed}.safetensors")
        facts[str(seed)] = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        head, *lines = (folder / "history.csv").read_text(encoding="utf-8").splitlines()
        rows += [f"seed,{head}"] * (not rows) + [f"{seed},{line}" for line in lines]
    (out / "history.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    write_json(out / "run.json", {"cell": name, "dataset": params.cell(name).dataset, "seeds": facts})
    print(f"{name}: weights in {weights}")


def explain_restart(folder: Path, seed: int, inputs: Inputs) -> None:
    """Say what changed when there is unfinished work of this seed that cannot be used."""
    if folder.exists():
        return
    for other in sorted(folder.parent.glob(f"seed{seed}-*/inputs.json"), key=lambda path: path.stat().st_mtime)[-1:]:
        before = json.loads(other.read_text(encoding="utf-8"))
        changed = differences(before, json.loads(json.dumps(asdict(inputs))))
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


def require_space(folder: Path, needed: int) -> None:
    """Raise OSError before the work rather than after it when the disk cannot hold the result."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{folder}: {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB for checkpoints and weights")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all."""
    from deeplab.checkpoint import write_durably

    write_durably(path, (json.dumps(value, indent=2) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", help="a key of `grid` in params.yaml")
    parser.add_argument("--data", type=Path, required=True, help="the prepared store")
    parser.add_argument("--pretrained", type=Path, required=True, help="where ImageNet weights may lie")
    parser.add_argument("--resume", type=Path, required=True, help="where unfinished work is kept")
    parser.add_argument("--out", type=Path, required=True, help="where the result goes")
    arguments = parser.parse_args()
    run(arguments.cell, arguments.data, arguments.pretrained, arguments.resume, arguments.out)


if __name__ == "__main__":
    run_command(main)
