"""The verbs of `grid` about numbers, weights and their history; pipeline/cli.py has the others."""

from contextlib import suppress
from pathlib import Path

import click

from pipeline.errors import ParamsError
from pipeline.settings.places import Places


def complete_cell(_: click.Context, __: click.Parameter, typed: str) -> list[str]:
    """The cells of params.yaml that begin with what was typed; none where the file is missing or wrong."""
    from pipeline.settings.yaml import read_yaml

    with suppress(ParamsError, TypeError, AttributeError):
        return [name for name in read_yaml(Path("params.yaml")).get("grid", {}) if name.startswith(typed)]
    return []


@click.command()
@click.argument("cell", required=False, shell_complete=complete_cell)
@click.argument("source", required=False, metavar="[FILE_OR_URL]")
@click.option("--from", "toolbox", help="What wrote the file: sssegmentation, mmsegmentation or torchvision.")
@click.option("--all", "every", is_flag=True, help="All cells of reports/published_weights.csv.")
def adopt(cell: str | None, source: str | None, toolbox: str | None, every: bool) -> None:
    """Measure weights that others published.

    Brings a checkpoint of another toolbox into the form of this project, evaluates it by the protocol, and fills
    reports/adopted.md. Without FILE_OR_URL it takes the addresses of reports/published_weights.csv.
    """
    if every == bool(cell):
        raise ParamsError("grid adopt: expected a cell or --all, and not both")

    from pipeline.verify.adopt import adopt, adopt_known

    if cell and source:
        print(adopt(cell, source, toolbox, Places()))
        return
    for line in adopt_known([cell] if cell else [], toolbox, Places()):
        print(line, flush=True)


@click.command()
@click.argument("cells", nargs=-1, metavar="[CELL]...", shell_complete=complete_cell)
@click.option("--fast", is_flag=True, help="Check the committed files only, in seconds.")
@click.option("--training", is_flag=True, help="Instead repeat steps of the trainings, and compare the bits.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Instead check what `grid report --bundle` wrote.")
@click.option("--key", type=click.Path(path_type=Path), help="With --bundle: the public key that must have signed it.")
def verify(cells: tuple[str, ...], fast: bool, training: bool, bundle: Path | None, key: Path | None) -> None:
    """Prove the numbers of the README.

    Follows each number to its record, run, weights and data, and computes it again.
    """
    if bundle or key:
        from pipeline.verify.bundle.check import check
        from pipeline.verify.bundle.keys import read_public

        if cells or fast or training:
            raise ParamsError("--bundle: got cells, --fast or --training too: expected it alone, or with --key")
        print(*check(bundle, read_public(key) if key else None), sep="\n")
        return
    from pipeline.verify.committed import run
    from pipeline.verify.training import repeated

    if fast and training:
        raise ParamsError("--training: got it with --fast, which repeats nothing: expected one of the two")
    found = repeated(list(cells), Places()) if training else run(list(cells), Places(), fast)
    for line in found or ["the README shows no number"]:
        print(line, flush=True)


@click.command()
@click.argument("cell", shell_complete=complete_cell)
@click.option("--device", help="Such as cpu or cuda:1; by default as runtime.device says.")
def measure(cell: str, device: str | None) -> None:
    """Measure parameters, FLOPs, latency and memory of a cell.

    On this machine and for one image, for the table columns of these names. Needs the prepared data and no training.
    """
    from pipeline.predict.measure import run

    print(run(cell, device))


@click.command()
@click.argument("cell", shell_complete=complete_cell)
def history(cell: str) -> None:
    """Show the values that a cell had in git, and what moved them.

    Names the settings, data, code or environment that changed between two values.
    """
    from pipeline.verify.history import run

    print(run(cell))


@click.command()
@click.argument("cells", nargs=-1, metavar="[CELL]...")
@click.option("--hub", metavar="OWNER/NAME", help="Upload one cell to this repository of the Hugging Face Hub instead.")
def publish(cells: tuple[str, ...], hub: str | None) -> None:
    """Put the weights behind the tables where others can get them.

    Pushes to the DVC remote of params.yaml (publish.remote) and reads everything back. By default all cells that were
    trained here.
    """
    from pipeline.verify.publish import publish, publish_to_hub

    names = list(cells)
    for line in publish_to_hub(names, hub, Places()) if hub else publish(names, Places()):
        print(line, flush=True)


@click.command()
@click.argument("cells", nargs=-1, required=True, metavar="CELL...")
def pull(cells: tuple[str, ...]) -> None:
    """Get the published weights of cells, and their logs."""
    from pipeline.verify.publish import pull

    for line in pull(list(cells), Places()):
        print(line, flush=True)
