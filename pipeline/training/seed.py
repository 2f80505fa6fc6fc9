"""The training of one seed of a cell, in a folder of its own."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab.config import Cell
from pipeline.errors import StoppedError
from pipeline.progress import median_speed, planner, reporter
from pipeline.settings.places import Places
from pipeline.settings.published import departs
from pipeline.settings.schema import RuntimeConfig
from pipeline.training.device import choose_kernels_by_time, kernels_chosen_by_rule, select_device, set_arithmetic
from pipeline.training.facts import (
    Chosen,
    Facts,
    Inputs,
    WeightsFile,
    explain_restart,
    flat_settings,
    forward_flops,
    read_facts,
    read_spots,
)
from pipeline.training.launch import local_rank, under_torchrun
from pipeline.training.provenance import file_sha256, git_state, machine
from pipeline.training.publish import require_space, save_weights, write_json
from pipeline.training.start import in_one_line, take_weights

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deeplab.ranks import Ranks
    from deeplab.selection import Outcome
    from deeplab.store import Split, Store


@dataclass(frozen=True, kw_only=True)
class CellRun:
    """What the trainings of a cell share."""

    name: str
    places: Places
    runtime: RuntimeConfig
    inputs: Inputs
    starts: Mapping[int, Path]  # with `init`: seed -> the file that it starts from
    store: "Store"
    stop: Callable[[], bool]
    ranks: "Ranks"

    def folder(self, seed: int) -> Path:
        """Where the unfinished work of `seed` is kept."""
        return self.places.resume(self.name) / f"seed{seed}-{self.inputs.fingerprint(seed)[:12]}"

    def is_finished(self, seed: int) -> bool:
        """Whether the training of `seed` has ended. The facts name the weights last."""
        facts = read_facts(self.folder(seed) / "facts.json")
        return bool(facts and facts.weights)


class SeedRun:
    """The training of one seed of a cell: `prepare`, `train`, and in the first process `finish`."""

    def __init__(self, run: CellRun, seed: int) -> None:
        from deeplab.images import training_images
        from deeplab.losses import CLASS_WEIGHTS
        from deeplab.training import total_steps

        self.run, self.seed, self.folder, self.cell = run, seed, run.folder(seed), run.inputs.cell
        processes = run.ranks.world if under_torchrun() else run.runtime.gpus_per_cell
        self.device = select_device(run.runtime.device, processes, local_rank())
        set_arithmetic(self.cell.train)
        choose_kernels_by_time(self.cell.train)
        self.split = training_images(run.store, self.cell.recipe, seed)
        self.steps = total_steps(len(self.split), self.cell.recipe)
        kind = self.cell.train.class_weights
        self.weights = CLASS_WEIGHTS[kind](self.split.records, len(run.store.classes)) if kind else None

    @property
    def spots(self) -> int:
        """Pairs of states to keep. None where the weights at the end are an average or chosen, not the last state."""
        train = self.cell.train
        return 0 if train.ema or train.validates else self.run.runtime.spots

    def prepare(self) -> None:
        """Build the network. The first process writes the facts that are known at the start."""
        import torch

        from deeplab.model import DeepLabV3

        name, ranks, pretrained = self.run.name, self.run.ranks, self.run.places.pretrained
        torch.manual_seed(self.seed)
        if self.cell.model.pretrained and ranks.first:
            print(f"{name}: starting from ImageNet weights (in {pretrained}, or fetched by timm)", flush=True)
        self.network = DeepLabV3(self.cell.model, len(self.run.store.classes), pretrained)
        self.init = self.take()
        self.facts = self.first_facts()
        if not ranks.first:
            return
        parameters = self.facts.parameters or 0
        explain_restart(self.folder, self.seed, self.run.inputs)
        # Two checkpoints, one that is being written, the weights, and the spots.
        train = self.cell.train
        copies = 5 + 3 * ((train.ema is not None) + (train.keep == "best")) + 2 * self.spots
        require_space(self.folder.parent, needed=copies * 4 * parameters)
        self.folder.mkdir(exist_ok=True)
        write_json(self.folder / "facts.json", self.facts.plain())
        write_json(self.folder / "inputs.json", self.run.inputs.plain())
        together = f" in {ranks.world} processes" if ranks.world > 1 else ""
        print(
            f"{name} seed {self.seed}: {len(self.split)} images, {self.steps} iterations, {parameters:,} parameters on "
            f"{self.facts.device}{together}",
            flush=True,
        )

    def take(self) -> dict[str, Any]:
        """Take the weights that `init` names. Returns what the facts state about it; nothing without `init`."""
        if self.seed not in self.run.starts:
            return {}
        taken = STARTS["init"](self.network, self.run.starts[self.seed], self.cell, self.run.store.classes)
        if self.run.ranks.first:
            print(f"{self.run.name} seed {self.seed}: {in_one_line(taken)}", flush=True)
        return {"init": taken}

    def first_facts(self) -> Facts:
        """What is known when the training starts."""
        inputs = self.run.inputs
        before = read_facts(self.folder / "facts.json")
        provenance: dict[str, Any] = {**machine(self.device), **git_state()}
        if (why := provenance.get("why_unknown")) and self.run.ranks.first:
            remedy = ". If this folder is yours: git config --global --add safe.directory '*'" * ("ownership" in why)
            print(f"warning: the record will not name the commit: {why}{remedy}", file=sys.stderr, flush=True)
        facts = Facts(
            cell=self.run.name,
            dataset=self.cell.dataset,
            seed=self.seed,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            iterations=self.steps,
            parameters=sum(parameter.numel() for parameter in self.network.parameters()),
            fingerprint={"cell": self.cell.fingerprint, "data": inputs.data, "code": inputs.code},
            settings=flat_settings(self.cell, self.seed),
            departs=departs(self.cell),
            flops=forward_flops(self.network, self.cell.recipe.crop),
            gpus_per_cell=tuple(sorted({*(before.gpus_per_cell if before else ()), self.run.ranks.world})),
            **provenance,
            **self.init,
        )
        if self.weights:
            return facts.model_copy(update={"class_weights": tuple(round(each, 6) for each in self.weights)})
        return facts

    def train(self) -> None:
        """Train from the newest checkpoint to the last step. Raises StoppedError after a signal."""
        from deeplab.job import Job, Pace, Watch
        from deeplab.training import fit

        name, runtime, ranks = self.run.name, self.run.runtime, self.run.ranks
        job = Job(
            network=self.network,
            split=self.split,
            cell=self.cell,
            seed=self.seed,
            device=self.device,
            folder=self.folder,
            pace=Pace(
                workers=runtime.workers,
                log_every=runtime.log_every,
                checkpoint_every=runtime.checkpoint_every,
                validate_every=runtime.validate_every,
                spots=self.spots,
            ),
            ranks=ranks,
            weights=self.weights,
        )
        self.began = time.monotonic()
        speeds = self.folder / "speed.csv"
        with reporter(name, self.cell.recipe.batch_size, speeds, quiet=not ranks.first) as report:
            watch = Watch(
                report=report,
                plan=planner(name, self.folder / "plan.json", quiet=not ranks.first),
                stop=self.run.stop,
                validate=self.validate,
                end=self.note,
            )
            finished = fit(job, watch)
        if not finished:
            raise StoppedError(f"{name}: stopped by a signal, state saved. Run the same command again to continue.")

    def validate(self, network: "nn.Module") -> float:
        """The mIoU of `network` on what the cell is evaluated on."""
        from deeplab.images import evaluation_images

        store = self.run.store
        split = evaluation_images(store, self.cell.recipe, self.seed)
        return validation_miou(network, split, len(store.classes), self.cell, self.device, self.run.ranks)

    def note(self, outcome: "Outcome") -> None:
        """Add to the facts what the validation split decided."""
        if self.cell.train.validates:
            chosen = Chosen(steps=outcome.steps, step=outcome.step, miou=outcome.miou)
            self.facts = self.facts.model_copy(update={"chosen": chosen})

    def finish(self) -> None:
        """Write the weights, then the completed facts, which show that this seed is finished."""
        from deeplab.monitor import peak_memory

        seconds, weights = round(time.monotonic() - self.began, 1), self.folder / "weights.safetensors"
        init = self.facts.init
        start = {"init": init.model_dump(include={"source", "sha256"})} if init else {}
        save_weights(self.network, weights, self.run.store, self.cell, {**self.facts.fingerprint, **start})
        end = {
            "seconds": seconds,
            "images_per_second": round(median_speed(self.folder / "speed.csv"), 2),
            "peak_memory": peak_memory(self.device),
            "weights": WeightsFile(file=f"seed{self.seed}.safetensors", sha256=file_sha256(weights)),
            "spots": read_spots(self.folder, self.steps, self.spots),
        }
        write_json(self.folder / "facts.json", self.facts.model_copy(update=end).plain())


# Left out of the code of a cell without `init` (pipeline/settings/code.py).
STARTS = {"init": take_weights}


def validation_miou(
    network: "nn.Module", split: "Split", classes: int, cell: Cell, device: "torch.device", ranks: "Ranks"
) -> float:
    """mIoU of the current network on whole images at one scale. Each process evaluates its share of the images."""
    import torch

    from deeplab.config import Protocol
    from deeplab.inference import evaluate
    from deeplab.metrics import score

    protocol = Protocol(scales=(1.0,), flip=False, window=None, stride=None)
    own = slice(ranks.rank, None, ranks.world)
    with kernels_chosen_by_rule():
        matrix = evaluate(network, split, classes, cell.inference, protocol, device, lambda indices: indices[own])
    return score(ranks.sum(torch.from_numpy(matrix)).numpy()).mean_iou
