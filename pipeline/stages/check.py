"""Hold params.yaml against its rules before any name of it is pasted into a command.

DVC pastes `${key}` into commands and paths as it is: a data set called `$(...)` would be run by the shell. So each
stage stands behind this one, into which nothing is pasted. What it writes is always the same: other settings make
nothing stale by this way.
"""

import argparse
from pathlib import Path

from deeplab.errors import naming
from pipeline.errors import run_command
from pipeline.settings.params import PARAMS, load_params

SAID = "params.yaml keeps its rules\n"


def run(out: Path, params_file: Path = PARAMS) -> None:
    """Write `out`; ParamsError for the first mistake in `params_file`, and then `out` is gone."""
    out.unlink(missing_ok=True)
    load_params(params_file)
    out.parent.mkdir(parents=True, exist_ok=True)
    with naming(out):
        out.write_text(SAID, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the file that says that all is well")
    run(parser.parse_args().out)


if __name__ == "__main__":
    run_command(main)
