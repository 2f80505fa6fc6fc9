"""`grid adopt`: a verb of pipeline/cli.py, beside the code that it calls."""

from contextlib import suppress
from pathlib import Path

import click

from pipeline.errors import ParamsError


def complete_cell(_: click.Context, __: click.Parameter, typed: str) -> list[str]:
    """The cells of params.yaml that begin with what was typed; none where the file is missing or wrong."""
    from pipeline.settings.yaml import read_yaml

    with suppress(ParamsError):
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

    from pipeline.settings.places import Places
    from pipeline.verify.adopt import adopt, adopt_known

    if cell and source:
        print(adopt(cell, source, toolbox, Places()))
        return
    for line in adopt_known([cell] if cell else [], toolbox, Places()):
        print(line, flush=True)
