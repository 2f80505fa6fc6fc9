"""Check all settings, and write the hash of the code that each stage can run.

Runs before every other stage: names from params.yaml become parts of commands and paths, and DVC reads the hashes as
parameters of the stages (pipeline/settings/code.py).
"""

import argparse
import json

from pipeline.errors import run_command
from pipeline.files import write_whole
from pipeline.results.columns import asked
from pipeline.settings.code import entries, nested
from pipeline.settings.equivalent import declare
from pipeline.settings.params import load_params
from pipeline.settings.places import Places
from pipeline.settings.yaml import read_yaml


def run(places: Places = Places()) -> None:
    """Write reports/code.json. Raises ParamsError for a mistake in params.yaml."""
    params = load_params(places.params)
    asked(params)
    code = nested(entries(params, places))
    places.code.parent.mkdir(parents=True, exist_ok=True)
    write_whole(places.code, json.dumps(code, indent=2) + "\n")
    print(f"params.yaml: {len(params.datasets)} data sets and {len(params.cells)} cells, no mistake")


def declare_equivalent(reason: str, places: Places = Places()) -> list[str]:
    """Declare that the present code gives the numbers of the code in dvc.lock. Returns the lines that were added.

    Raises ParamsError for a mistake in params.yaml, or when nothing has run yet.
    """
    now = entries(load_params(places.params), places)
    lines = declare(read_yaml(places.lock).get("stages", {}), now, places.equivalent_code, reason)
    run(places)
    return lines


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run()


if __name__ == "__main__":
    run_command(main)
