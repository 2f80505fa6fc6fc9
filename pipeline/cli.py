"""What people type: `grid VERB`. The stages themselves are `python -m pipeline.stages.NAME`, typed by dvc.yaml."""

from pathlib import Path
from typing import Any

import click

from deeplab.errors import DataError
from pipeline.errors import ParamsError
from pipeline.settings.places import Places
from pipeline.verify.verbs import adopt, complete_cell, history, measure, publish, pull, verify

ENGINES = ("here", "ray", "slurm")

targets = click.argument("targets", nargs=-1, metavar="[TARGET]...")
engine = click.option("--on", type=click.Choice(ENGINES), default="here", show_default=True, help="Where cells run.")
address = click.option("--address", help="Address of a running Ray; by default Ray starts on this machine.")
out = click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the results.")
seed = click.option("--seed", type=int, default=0, show_default=True, help="Which of the trained seeds.")


class Verbs(click.Group):
    """Commands in the order in which this file defines them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  named by click
        return list(self.commands)


@click.group(cls=Verbs, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def grid(context: click.Context) -> None:
    """The reproducible DeepLabv3 grid. Run it in the folder of a project, which has params.yaml and dvc.yaml.

    A TARGET is a stage (readme@voc), a pattern ('train@voc_*') or a kind of stage (evaluate). By default all of
    dvc.yaml.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@grid.command()
@targets
@click.option("--slots", type=click.IntRange(min=1), help="Stages at a time; by default one per GPU, or by the cores.")
@engine
@address
def run(targets: tuple[str, ...], slots: int | None, on: str, address: str | None) -> int:
    """Run what is out of date, many stages at a time.

    The same command continues after a kill. A failed stage stops only the stages that need it.
    """
    require_ray(on, address)
    from pipeline.cluster.engines import ENGINES
    from pipeline.runner.run import run

    return run(targets, ENGINES[on], slots, address)


@grid.command()
@targets
@click.option("--json", "as_json", is_flag=True, help="Print JSON: null is unknown, sizes are bytes.")
@click.option("--why", is_flag=True, help="Show what makes each stage stale: values, modules and lines of the code.")
def plan(targets: tuple[str, ...], as_json: bool, why: bool) -> None:
    """Show what would run, why, and what it costs."""
    if why:
        from pipeline.verify.why import run

        print(run(targets))
        return
    from pipeline.runner import plan
    from pipeline.runner.graph import outdated
    from pipeline.runner.run import load_settings, read_fresh_stages, starts_after

    params = load_settings()
    stages = read_fresh_stages(targets, starts_after(params))
    found = plan.plan(params, outdated(stages))
    print(plan.as_json(found, len(stages)) if as_json else plan.as_text(found, len(stages)))


@grid.command("try")
@click.argument("cell", shell_complete=complete_cell)
@click.argument("settings", nargs=-1, required=True, metavar="KEY=VALUE...")
def try_settings(cell: str, settings: tuple[str, ...]) -> None:
    """Train a cell with other settings, beside the recorded one.

    KEY=VALUE is a setting, such as lr=0.02 or augment.flip=0. Runs as an experiment of DVC in a copy of the folder, so
    params.yaml and the tables stay as they are.
    """
    from pipeline.runner.trial import run

    print(run(cell, settings))


@grid.command()
@click.option("--watch", "live", is_flag=True, help="Stay, and redraw every second until nothing runs any more.")
def status(live: bool) -> None:
    """Show the cells of a grid: step, speed, time left, mIoU."""
    from pipeline.runner.status import show, watch

    if live:
        watch()
    else:
        print(show())


@grid.command()
@engine
@address
def doctor(on: str, address: str | None) -> int:
    """Check locks, cache, GPUs, tracking and data."""
    require_ray(on, address)
    from pipeline.cluster.doctor import examine

    return examine(on, address)


@grid.command()
def repair() -> None:
    """Repair files that DVC left half-written.

    DVC leaves such files when it is killed or the disk is full.
    """
    from pipeline.runner.repair import repair

    print("\n".join(repair()) or "nothing to repair")


for verb in (verify, history, measure, publish, pull, adopt):
    grid.add_command(verb)


@grid.command()
@click.option("--reason", required=True, help="Why the change moves no number.")
def equivalent(reason: str) -> None:
    """Declare that a change of the code moves no number.

    The results stay valid until the next change. Adds lines to reports/equivalent_code.txt.
    """
    from pipeline.stages.check import declare_equivalent

    print("\n".join(declare_equivalent(reason)) or "nothing to declare: the code is that of the results")


@grid.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[BASE OURS THEIRS]")
@click.option("--install", is_flag=True, help="Make git use it, in this clone.")
def merge(files: tuple[Path, ...], install: bool) -> int:
    """Merge dvc.lock stage by stage, when git merges branches.

    Run it once with --install. From then on git calls it with three files.
    """
    from pipeline.cluster.merge import main

    return main(files, install)


@grid.command()
@click.argument("cell", shell_complete=complete_cell)
@click.argument("source", type=click.Path(path_type=Path))
@out
@seed
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images of one size at a time.")
@click.option("--device", help="Such as cpu or cuda:1; by default as runtime.device says.")
@click.option("--window", nargs=2, type=int, metavar="H W", help="Predict large images in tiles of this size.")
@click.option("--stride", nargs=2, type=int, metavar="H W", help="Distance between two tiles.")
@click.option("--truth", type=click.Path(path_type=Path), help="A mask or a folder of masks: score against it.")
def predict(
    cell: str,
    source: Path,
    out: Path,
    seed: int,
    batch: int,
    device: str | None,
    truth: Path | None,
    **tiles: tuple[int, int] | None,
) -> int:
    """Predict masks for images or a video.

    SOURCE is a folder, an image or a video. CELL is a cell of params.yaml, a weights file, or a folder with
    model.safetensors.
    """
    from pipeline.predict import predict
    from pipeline.predict.truth import pairs_of, score_masks

    tiling = predict.tiling_of(tiles["window"], tiles["stride"])
    pairs = pairs_of(source, truth, out) if truth else {}
    code = predict.run(cell, source, out, seed=seed, batch=batch, device=device, tiling=tiling)
    if pairs and code:
        raise DataError(f"{source}: no score: not every image could be read. Replace or remove those named above.")
    if pairs:
        print(score_masks(cell, seed, pairs, source, out))
    return code


@grid.command()
@click.argument("cell", shell_complete=complete_cell)
@click.argument("format")
@out
@seed
@click.option("--images", type=click.Path(path_type=Path), help="For a submission: other images than the test set.")
def export(cell: str, format: str, out: Path, seed: int, images: Path | None) -> None:  # noqa: A002  the user's word
    """Write a network as FORMAT: onnx, pt2 or huggingface.

    Or submission: the archive of predicted masks that the test server of PASCAL VOC, ADE20k or Cityscapes takes.
    """
    from pipeline.predict import export

    export.run(cell, format, out, seed=seed, images=images)


@grid.command()
@click.option("--bundle", type=click.Path(path_type=Path), help="Instead write the evidence as one .zip file.")
@click.option("--key", type=click.Path(path_type=Path), help="With --bundle: the private Ed25519 key to sign with.")
def report(bundle: Path | None, key: Path | None) -> None:
    """Write the page of results, reports/index.html, or a bundle."""
    if bundle or key:
        from pipeline.verify.bundle.write import write

        print(*write(bundle, key, Places()), sep="\n")
        return
    from pipeline.stages.report import run

    run()


@grid.command()
@click.option("--port", type=int, default=5000, show_default=True, envvar="PORT", show_envvar=True, help="Local port.")
def ui(port: int) -> None:
    """Compare the runs in MLflow."""
    from pipeline.tracking.ui import run

    run(port)


@grid.command()
@click.argument("name")
@click.option("--images", type=click.Path(path_type=Path), help="Folder with the images; its subfolders are searched.")
@click.option("--masks", type=click.Path(path_type=Path), help="Folder with their masks; may be the same folder.")
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Instead of both: a list with a line `image mask` per pair. Repeat it for each split.",
)
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    help="Instead of masks: what a labelling tool exported, a folder or a file.",
)
@click.option("--classes", type=click.Path(path_type=Path), help="List of classes; by default one beside the data.")
@click.option("--backbone", multiple=True, help="A network of timm. Repeat it for several.")
@click.option(
    "--weights", default="none", show_default=True, help="none, imagenet, or a file ARCHITECTURE.TAG.safetensors."
)
def new(name: str, backbone: tuple[str, ...], weights: str, annotations: Path | None, **data: Any) -> None:
    """Write a project for images and masks of your own.

    Or for images and the annotations of a labelling tool. Looks at every mask, prints what it found, and writes the
    folder NAME. Then: cd NAME && grid run
    """
    from pipeline.data import look
    from pipeline.data.formats.annotations import exports
    from pipeline.runner.checks import check_names
    from pipeline.runner.local import visible_gpus
    from pipeline.settings.scaffold import Network, check_new, write_project

    check_new(name)
    network = Network.of(backbone, weights, gpu=bool(visible_gpus()))
    source = exports.describe(annotations, **data) if annotations else look.describe(**data)
    print(source.report)
    print(f"\n{name}: {write_project(name, source, network, check_names)}. Next: look at {name}/params.yaml, then")
    print(f'  cd {name} && git add . && git commit -m "{name}" && grid run')


def require_ray(on: str, address: str | None) -> None:
    """Raise ParamsError for an address that nobody uses."""
    if address and on != "ray":
        raise ParamsError(f"--address: got {address!r}, which belongs to --on ray")
