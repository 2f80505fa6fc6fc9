"""Train one cell of the grid, once per seed, and write weights, history and the facts of the run.

A run that was interrupted goes on from its newest checkpoint when the same command is given again. Unfinished work lies
in the resume folder, outside of what DVC deletes before it runs a stage, under a name that holds the fingerprint of
settings, data and code: with any of them changed the run starts over, and with the change undone it goes on.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab.config import Cell, digest
from deeplab.errors import SettingsError
from pipeline.errors import ParamsError, StoppedError, run_command
from pipeline.process import locked, signals_noted
from pipeline.progress import median_speed, planner, reporter
from pipeline.settings.params import PARAMS, Params, load_params
from pipeline.settings.published import departs
from pipeline.tracking.live import mirror
from pipeline.training.launch import grouped, launch, local_rank, under_torchrun
from pipeline.training.provenance import code_fingerprint, file_sha256, git_state, machine
from pipeline.training.publish import publish, read_facts, require_space, save_weights, write_json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deeplab.ranks import Ranks
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

    `pretrained` is where ImageNet weights may lie, `resume` where unfinished work is kept until the cell is done. Under
    torchrun this is one of the processes that do so together. Raises StoppedError after a signal (the state is saved),
    BusyError when another process trains this cell.
    """
    params = load_params(params_file)
    params.cell(name)  # an unknown name ends here
    resume.mkdir(parents=True, exist_ok=True)
    with (
        signals_noted() as stop,
        grouped(params.runtime.device, stop) as ranks,
        locked(resume / ".lock", name) if ranks.first else nullcontext(),
    ):
        from deeplab.store import Store

        store = Store(data)
        inputs = read_inputs(params, name, store.fingerprint)
        work = {seed: resume / f"seed{seed}-{inputs.fingerprint(seed)[:12]}" for seed in params.seeds}
        for seed, folder in work.items():
            if not ranks.agree("weights" in read_facts(folder / "facts.json")):  # written last
                try:
                    train_seed(name, params, inputs, store, seed, folder, pretrained, stop, ranks)
                except ParamsError:
                    raise
                except SettingsError as error:  # the library knows the setting, not the cell
                    raise ParamsError(f"{params_file}: cell {name}: {error}") from None
        if ranks.first:
            require_unchanged(name, inputs, read_inputs(load_params(params_file), name, Store(data).fingerprint))
            require_no_signal(name, stop)
            publish(name, inputs.cell.dataset, work, out)
            require_no_signal(name, stop)
            forget(resume)


def require_no_signal(name: str, stop: Callable[[], bool]) -> None:
    """Raise StoppedError after a signal: the `dvc` that would record the result may have got it too, and be gone."""
    if stop():
        raise StoppedError(f"{name}: trained, then stopped by a signal. Run the same command again to publish it.")


def forget(resume: Path) -> None:
    """Remove finished work. Under another name first: half of it would look unfinished, and stop the next run."""
    gone = resume.with_name(f".{resume.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)  # of a run that was killed here
    resume.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)  # on NFS the lock that is still open keeps the folder


def require_unchanged(name: str, before: Inputs, now: Inputs) -> None:
    """Raise ParamsError when the files say something else than when the training began."""
    if now != before:
        changed = ", ".join(differences(asdict(before), asdict(now)))
        raise ParamsError(
            f"{name}: {changed} changed while the cell was trained, so its result is not what the files say now. "
            f"Nothing was published. Undo the change and run the same command to publish it, or run it with the "
            f"change to train again."
        )


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
    ranks: "Ranks",
) -> None:
    """Train one seed in `folder`, which ends with weights.safetensors, history.csv and facts.json."""
    import torch

    from deeplab.model import DeepLabV3
    from deeplab.monitor import peak_memory
    from deeplab.training import Job, Pace, Watch, fit, total_steps
    from pipeline.training.device import choose_kernels_by_time, select_device, set_arithmetic
    from pipeline.training.facts import forward_flops

    cell, runtime = inputs.cell, params.runtime
    device = select_device(runtime.device, runtime.gpus_per_cell if not under_torchrun() else ranks.world, local_rank())
    set_arithmetic(cell.train)
    choose_kernels_by_time()
    split = store.split(cell.recipe.train_split)
    steps = total_steps(len(split), cell.recipe)
    torch.manual_seed(seed)
    if cell.model.pretrained and ranks.first:
        print(f"{name}: starting from ImageNet weights (in {pretrained}, or fetched by timm)", flush=True)
    network = DeepLabV3(cell.model, len(store.classes), pretrained)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    facts = first_facts(name, inputs, seed, device, parameters, steps)
    facts["flops"] = forward_flops(network, cell.recipe.crop)  # of one crop
    if ranks.first:
        explain_restart(folder, seed, inputs)
        require_space(folder.parent, needed=5 * 4 * parameters)  # two checkpoints, one being written, and the weights
        folder.mkdir(exist_ok=True)
        facts["gpus_per_cell"] = group_sizes(folder / "facts.json", ranks.world)
        write_json(folder / "facts.json", facts)
        write_json(folder / "inputs.json", asdict(inputs))
        print(
            f"{name} seed {seed}: {len(split)} images, {steps} iterations, {parameters:,} parameters on "
            f"{facts['device']}" + f" in {ranks.world} processes" * (ranks.world > 1),
            flush=True,
        )

    pace = Pace(
        workers=runtime.workers,
        log_every=runtime.log_every,
        checkpoint_every=runtime.checkpoint_every,
        validate_every=runtime.validate_every,
    )
    began = time.monotonic()
    with (
        mirror(folder, every=runtime.tracking_every) if ranks.first else nullcontext(),
        reporter(name, cell.recipe.batch_size, folder / "speed.csv", quiet=not ranks.first) as report,
    ):
        job = Job(
            network=network, split=split, cell=cell, seed=seed, device=device, folder=folder, pace=pace, ranks=ranks
        )
        watch = Watch(
            report=report,
            plan=planner(name, folder / "plan.json", quiet=not ranks.first),
            stop=stop,
            validate=lambda model: validation_miou(model, store, cell, device, ranks),
        )
        finished = fit(job, watch)
    if not finished:
        raise StoppedError(f"{name}: stopped by a signal, state saved. Run the same command again to go on.")
    if ranks.first:
        facts["seconds"] = round(time.monotonic() - began, 1)  # of the last, unbroken stretch
        save_weights(network, folder / "weights.safetensors", store, cell, facts["fingerprint"])
        facts["images_per_second"] = round(median_speed(folder / "speed.csv"), 2)
        facts["peak_memory"] = peak_memory(device)  # bytes
        facts["weights"] = {"file": f"seed{seed}.safetensors", "sha256": file_sha256(folder / "weights.safetensors")}
        write_json(folder / "facts.json", facts)


def group_sizes(facts: Path, now: int) -> list[int]:
    """In how many processes a training ran, in each of its stretches so far another number may have been."""
    before = read_facts(facts).get("gpus_per_cell", [])
    return sorted({*before, now})


def validation_miou(network: "nn.Module", store: "Store", cell: Cell, device: "torch.device", ranks: "Ranks") -> float:
    """mIoU of the network as it is now: whole images, one scale, no flip. Each process sees its share of the images."""
    import torch

    from deeplab.config import Protocol
    from deeplab.inference import evaluate
    from deeplab.metrics import score

    protocol = Protocol(scales=(1.0,), flip=False, window=None, stride=None)
    split = store.split(cell.recipe.val_split)
    own = slice(ranks.rank, None, ranks.world)
    matrix = evaluate(
        network, split, len(store.classes), cell.inference, protocol, device, lambda indices: indices[own]
    )
    return score(ranks.sum(torch.from_numpy(matrix)).numpy()).mean_iou


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
        "departs": departs(cell),
    }


def explain_restart(folder: Path, seed: int, inputs: Inputs) -> None:
    """Say what changed when there is unfinished work of this seed that cannot be used."""
    if folder.exists():
        return
    for other in sorted(folder.parent.glob(f"seed{seed}-*/inputs.json"), key=lambda path: path.stat().st_mtime)[-1:]:
        before = read_facts(other)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", help="a key of `grid` in params.yaml")
    parser.add_argument("--data", type=Path, required=True, help="the prepared store")
    parser.add_argument("--pretrained", type=Path, required=True, help="where ImageNet weights may lie")
    parser.add_argument("--resume", type=Path, required=True, help="where unfinished work is kept")
    parser.add_argument("--out", type=Path, required=True, help="where the result goes")
    arguments = parser.parse_args()
    processes = load_params().runtime.gpus_per_cell
    if processes > 1 and not under_torchrun():
        launch("pipeline.stages.train", sys.argv[1:], processes)
        return
    run(arguments.cell, arguments.data, arguments.pretrained, arguments.resume, arguments.out)


if __name__ == "__main__":
    run_command(main)
