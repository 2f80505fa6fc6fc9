"""Repeat parts of a training from the states that it kept (its spots), and compare them with what it left.

Under the conditions of the training the bits must be the same. Elsewhere the losses of the repeated steps, and the way
that the weights went in the last ones, must agree within BOUNDS.
"""

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab.config import Cell
from deeplab.errors import DataError, NonFiniteError
from pipeline.errors import MismatchError
from pipeline.settings.code import code_of
from pipeline.settings.links import remedy
from pipeline.settings.params import Params, load_params
from pipeline.settings.places import Places
from pipeline.training.facts import Facts, Spot, differences, flat_settings, read_run
from pipeline.training.provenance import differing, file_sha256, machine
from pipeline.verify.workers import side_by_side

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Tensors = dict[str, Tensor]

    from deeplab.checkpoint import State
    from deeplab.store import Split, Store

# Relative differences. Another number of threads moved losses by 3e-7 and weights by 3e-5 in the demo, a learning rate
# that is higher by a hundredth by 5e-4 and 2e-2.
BOUND, BOUND_IN_SHORT_NUMBERS = 1e-3, 5e-2  # the latter for bf16, fp16 and TF32


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One seed of a cell as run.json describes it, and what is needed to repeat a part of its training."""

    cell: Cell
    facts: Facts
    params: Params
    places: Places
    scratch: Path  # a folder for checkpoints, which the caller removes

    @cached_property
    def store(self) -> "Store":
        """The prepared data."""
        from deeplab.store import Store

        return Store(self.places.store(self.cell.dataset))

    @property
    def images(self) -> "Split":
        """What this seed was trained on."""
        from deeplab.images import training_images

        return training_images(self.store, self.cell.recipe, self.facts.seed)

    @cached_property
    def device(self) -> "torch.device":
        """Where the steps are repeated."""
        from pipeline.training.device import select_device

        return select_device(self.params.runtime.device)

    @property
    def name(self) -> str:
        return f"{self.facts.cell} seed {self.facts.seed}"

    def path(self, file: str) -> Path:
        """A file beside the weights."""
        return self.places.weights(self.facts.cell) / file

    @property
    def bound(self) -> float:
        """The relative difference that is accepted where bits may differ."""
        train = self.cell.train
        return BOUND if train.precision == "fp32" and not train.tf32 else BOUND_IN_SHORT_NUMBERS

    def wrong(self, what: str) -> MismatchError:
        return MismatchError(f"{self.name}: {what}")

    def conditions(self) -> str:
        """What differs from the training, apart from its inputs, and lets other bits be expected; else nothing."""
        facts, here = self.facts, machine(self.device)
        then = facts.versions | {key: value for key in ("torch", "timm") if (value := getattr(facts, key))}
        code = code_of("train", self.params, self.places, facts.cell)
        processes = max(facts.gpus_per_cell, default=1)
        found = [
            differing(then, here["versions"] | {key: here[key] for key in ("torch", "timm")}),
            "other code" if facts.fingerprint.get("code") != code else "",
            f"{facts.device}, now {here['device']}" if facts.device != here["device"] else "",
            f"{facts.processor}, now {here['processor']}" if facts.processor != here["processor"] else "",
            f"{processes} processes, now 1" if processes > 1 else "",
            "other bits each time" if self.device.type == "cuda" and not self.cell.train.deterministic else "",
        ]
        return "; ".join(filter(None, found))


def repeated(names: list[str], places: Places) -> Iterator[str]:
    """Check the cells `names`, by default all whose training kept spots; yields a line about each seed.

    Raises MismatchError at the first that fails.
    """
    params = load_params(places.params)
    for name in names:
        params.cell(name)
    trained = {name: read_run(places.facts(name)) for name in names or params.cells}
    if not any(facts.spots for seeds in trained.values() for facts in seeds.values()) and not names:
        yield "no training here kept spots"
        return
    for name, seeds in trained.items():
        if names and not seeds:
            what = remedy(name, params.cell(name).dataset, places)
            raise MismatchError(f"{name}: {places.facts(name)} not found. {what}")
        if names and not all(facts.spots for facts in seeds.values()):
            raise MismatchError(
                f"{name}: its training kept no spots: it is older, runtime.spots was 0, or its weights are chosen or "
                f"averaged (ema, keep, patience). To train it again: dvc repro -f train@{name}"
            )
    kept = [(name, facts) for name, seeds in trained.items() for facts in seeds.values() if facts.spots]
    for dataset, name in {params.cell(name).dataset: name for name, _ in kept}.items():
        require_intact(name, places.store(dataset))
    with tempfile.TemporaryDirectory(dir=places.runs) as folder:
        trainings = [
            Trained(cell=params.cell(name), facts=facts, params=params, places=places, scratch=Path(folder))
            for name, facts in kept
        ]
        threads = max(trained.cell.train.threads for trained in trainings)
        yield from side_by_side(check, trainings, params.runtime.device, threads)


def require_intact(name: str, folder: Path) -> None:
    """Read every byte of the store in `folder`, on which `name` was trained.

    Raises MismatchError where one has changed.
    """
    from deeplab.store import Store

    try:
        Store(folder).verify()
    except DataError as error:
        run = f"Run: dvc repro prepare@{folder.name}"
        raise MismatchError(f"{name}: no data to repeat its training on: {error} {run}") from None


def check(trained: Trained) -> str:
    """Check one seed. Returns what was found, in one line."""
    check_inputs(trained)
    check_files(trained)
    conditions = trained.conditions()
    differences = [compare(trained, spot, conditions) for spot in trained.facts.spots]
    done = ", ".join(f"{spot.start} to {spot.stop}" for spot in trained.facts.spots)
    line = f"{trained.name}: steps {done} of {trained.facts.iterations} again: "
    known = [difference for difference in differences if difference is not None]
    if not known:
        return f"{line}the same bits" + (f", in spite of {conditions}" if conditions else "")
    worst = f"largest relative difference {max(known):.1e}, bound {trained.bound:.0e}"
    return f"{line}not the same bits ({conditions}), {worst}"


def check_inputs(trained: Trained) -> None:
    """The settings and the data that run.json names must be those of this folder."""
    facts, name, cell = trained.facts, trained.facts.cell, trained.cell
    now = flat_settings(cell, facts.seed)
    changed = differences(facts.settings, {key: value for key, value in now.items() if key in facts.settings})
    if facts.fingerprint.get("cell") != cell.fingerprint or changed:
        what = ", ".join(changed) or "augment or an optional setting"
        raise trained.wrong(f"trained with different settings: {what}. Undo the change, or run: dvc repro train@{name}")
    if facts.fingerprint.get("data") != trained.store.fingerprint:
        raise trained.wrong(f"trained on other data than {trained.store.folder}. Run: dvc repro train@{name}")


def check_files(trained: Trained) -> None:
    """The weights and the spots must be the files that run.json names, and the last spot must end the training."""
    from deeplab.spots import planned
    from deeplab.training import total_steps

    facts, name = trained.facts, trained.facts.cell
    steps = total_steps(len(trained.images), trained.cell.recipe)
    pairs = [(spot.start, spot.stop) for spot in facts.spots]
    lengths = [len(spot.losses) for spot in facts.spots]
    if not facts.weights or pairs[-1:] != planned(steps, 1) or lengths != [stop - start for start, stop in pairs]:
        raise trained.wrong(
            f"{trained.places.facts(name)}: without weights, losses, or a spot that ends with step {steps}"
        )
    spots = {spot.file(facts.seed): spot.sha256 for spot in facts.spots}
    for file, expected in {facts.weights.file: facts.weights.sha256, **spots}.items():
        path = trained.path(file)
        if not path.exists() or file_sha256(path) != expected:
            what = "another SHA-256 than in" if path.exists() else "not found, but named in"
            raise trained.wrong(f"{path}: {what} {trained.places.facts(name)}. Run: dvc checkout {path}")


def compare(trained: Trained, spot: Spot, conditions: str) -> float | None:
    """Repeat the steps of `spot`. Returns the largest relative difference, None for the same bits.

    Raises MismatchError for a difference above the bound, or for any where no `conditions` explain it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from deeplab.spots import pack

    before, losses, after = repeat(trained, spot)
    same = sha256(pack(after)).hexdigest() == spot.after
    apart = [abs(again - said) / max(abs(said), 1e-12) for again, said in zip(losses, spot.losses, strict=True)]
    limit = trained.bound if conditions else 0.0
    where = f"steps {spot.start} to {spot.stop} again{f' ({conditions})' if conditions else ''}"
    if wrong := [number for number, difference in enumerate(apart) if not difference <= limit]:
        first = wrong[0]
        cause = "lr, momentum, weight decay or samples" if first else "the state, the samples or the loss"
        raise trained.wrong(
            f"{where}: the loss of step {spot.start + first + 1} is {losses[first]:.8g}, run.json says "
            f"{spot.losses[first]:.8g}, {f'after {first} that agree' if first else 'the first one'}: {cause} differ"
        )
    if not same and not conditions:
        raise trained.wrong(f"{where}: the losses are those of run.json, the state after them is not")
    off = 0.0
    if spot == trained.facts.spots[-1] and trained.facts.weights:
        file = trained.path(trained.facts.weights.file)
        try:
            off = way(before["network"], after["network"], load_file(file))
        except SafetensorError as error:
            raise trained.wrong(f"{file}: not a weights file, or damaged ({error})") from None
        if not off <= (0.0 if same else limit):
            raise trained.wrong(f"{where}: they do not end at the weights in {file} ({off:.1e} of the way from them)")
    return None if same and not any(apart) else max(*apart, off)


def repeat(trained: Trained, spot: Spot) -> tuple["State", list[float], "State"]:
    """Train the steps of `spot` from its first state. Returns this state, the losses and the state after them."""
    import torch

    from deeplab.checkpoint import load_checkpoint, save_checkpoint
    from deeplab.job import Job, Pace, Watch
    from deeplab.model import DeepLabV3
    from deeplab.spots import unpack
    from deeplab.training import fit
    from pipeline.training.device import choose_kernels_by_time, set_arithmetic

    cell, runtime, file = trained.cell, trained.params.runtime, trained.path(spot.file(trained.facts.seed))
    set_arithmetic(cell.train)
    choose_kernels_by_time(cell.train)
    network = DeepLabV3(replace(cell.model, pretrained=False), len(trained.store.classes))
    network = network.to(memory_format=torch.channels_last)
    try:
        before = unpack(file, spot.start, network, cell.train)
    except DataError as error:
        raise trained.wrong(str(error)) from None
    losses: list[float] = []
    done = count(spot.start + 1)
    watch = Watch(report=lambda progress: losses.append(progress.loss), stop=lambda: next(done) >= spot.stop)
    with tempfile.TemporaryDirectory(dir=trained.scratch) as folder:
        save_checkpoint(Path(folder), spot.start, before)
        job = Job(
            network=network,
            split=trained.images,
            cell=cell,
            seed=trained.facts.seed,
            device=trained.device,
            folder=Path(folder),
            pace=Pace(workers=runtime.workers, log_every=1, checkpoint_every=math.inf, validate_every=0),
            weights=trained.facts.class_weights,
        )
        try:
            fit(job, watch)
        except NonFiniteError as error:
            raise trained.wrong(f"steps {spot.start} to {spot.stop} again: {error}") from None
        after = load_checkpoint(Path(folder))
    assert after
    return before, losses, after


def way(start: "Tensors", again: "Tensors", said: "Tensors") -> float:
    """How far `again` is from `said`, as a share of the way from `start`: the weights, or the statistics of batch
    normalisation, whichever is larger. Infinite for another network, 0 only for the same bits.
    """
    if {name: value.shape for name, value in again.items()} != {name: value.shape for name, value in said.items()}:
        return math.inf
    statistics = {name for name in said if "running_" in name or not said[name].is_floating_point()}
    found = []
    for names in (statistics, said.keys() - statistics):
        off, moved = (
            sum(float((one[name].double() - said[name].double()).square().sum()) for name in names)
            for one in (again, start)
        )
        found.append(math.sqrt(off / moved) if off and moved else math.inf if off else 0.0)
    return max(found)
