"""Train one cell of the grid, once for each seed, and write weights, history and the facts of the run.

The same command continues an interrupted run from its newest checkpoint. Unfinished work is kept in the resume folder,
because DVC deletes the outs before it runs a stage. Its name contains the fingerprint of settings, data and code: when
one of them changes the run starts over, and when the change is undone it continues.
"""

import argparse
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from deeplab.errors import SettingsError
from pipeline.errors import ParamsError, StoppedError, run_command
from pipeline.files import claimed
from pipeline.process import signals_noted
from pipeline.settings.code import code_of
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.tracking.live import mirror
from pipeline.training.facts import Inputs, differences
from pipeline.training.launch import grouped, launch, under_torchrun
from pipeline.training.parent import find_starts
from pipeline.training.provenance import file_sha256
from pipeline.training.publish import publish
from pipeline.training.reuse import take_trained
from pipeline.training.seed import CellRun, SeedRun


def run(name: str, places: Places = Places()) -> None:
    """Train the cell `name` and write its weights, history.csv and run.json.

    Under torchrun this is one of several processes that do so together. Raises StoppedError after a signal (the state
    is saved), BusyError when another process trains this cell.
    """
    places.require_own(places.runs)
    params = load_params(places.params)
    dataset = params.cell(name).dataset  # raises for an unknown name
    resume = places.resume(name)
    resume.mkdir(parents=True, exist_ok=True)
    with (
        signals_noted() as stop,
        grouped(params.runtime.device, stop) as ranks,
        claimed(resume / ".lock", name) if ranks.first else nullcontext(),
    ):
        from deeplab.store import Store

        store = Store(places.store(dataset))
        inputs = read_inputs(name, places, store.fingerprint)
        cell = CellRun(
            name=name,
            places=places,
            runtime=params.runtime,
            inputs=inputs,
            starts=find_starts(name, params, places),
            store=store,
            stop=stop,
            ranks=ranks,
        )
        if ranks.first:
            take_trained(name, params.runs[name], inputs, places, cell.folder)
        for seed in params.runs[name]:
            if not ranks.agree(cell.is_finished(seed)):
                train_seed(cell, seed)
        if ranks.first:
            require_unchanged(name, inputs, read_inputs(name, places, Store(store.folder).fingerprint))
            require_no_signal(name, stop)
            publish(name, dataset, {seed: cell.folder(seed) for seed in params.runs[name]}, places.run(name))
            require_no_signal(name, stop)
            forget(resume)


def read_inputs(name: str, places: Places, data: str) -> Inputs:
    """The inputs of the cell `name` as its files are now. `data` is the fingerprint of the store."""
    params = load_params(places.params)
    code = code_of("train", params, places, name)
    starts = tuple(file_sha256(file) for file in find_starts(name, params, places).values())
    return Inputs(cell=params.cell(name), seeds=params.runs[name], data=data, code=code, starts=starts)


def require_unchanged(name: str, before: Inputs, now: Inputs) -> None:
    """Raise ParamsError when the inputs are not those with which the training began."""
    if now != before:
        changed = ", ".join(differences(before.plain(), now.plain()))
        raise ParamsError(
            f"{name}: {changed} changed while the cell was trained, so the result is not that of the current files. "
            f"Nothing was published. Undo the change and run the same command to publish the result, or run it with "
            f"the change to train again."
        )


def require_no_signal(name: str, stop: Callable[[], bool]) -> None:
    """Raise StoppedError after a signal: the `dvc` that would record the result may have got it too, and be gone."""
    if stop():
        raise StoppedError(f"{name}: trained, then stopped by a signal. Run the same command again to publish it.")


def forget(resume: Path) -> None:
    """Remove finished work. It is renamed first: a half-removed folder would look unfinished and stop the next run."""
    gone = resume.with_name(f".{resume.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)  # of a run that was killed here
    resume.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)  # on NFS the lock that is still open keeps the folder


def train_seed(cell: CellRun, seed: int) -> None:
    """Train one seed. Its folder then has weights.safetensors, history.csv and facts.json."""
    try:
        seed_run = SeedRun(cell, seed)
        seed_run.prepare()
        with mirror(seed_run.folder, every=cell.runtime.tracking_every) if cell.ranks.first else nullcontext():
            seed_run.train()
        if cell.ranks.first:
            seed_run.finish()
    except ParamsError:
        raise
    except SettingsError as error:  # the library knows the setting, not the cell
        raise ParamsError(f"{cell.places.params}: cell {cell.name}: {error}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", help="a key of `grid` in params.yaml")
    cell = parser.parse_args().cell
    processes = load_params().runtime.gpus_per_cell
    if processes > 1 and not under_torchrun():
        launch("pipeline.stages.train", [cell], processes)
    else:
        run(cell)


if __name__ == "__main__":
    run_command(main)
