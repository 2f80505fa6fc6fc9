"""Check all settings, and write the hash of the code that each stage can run.

Runs before every other stage: names from params.yaml become parts of commands and paths, and DVC reads the hashes as
parameters of the stages (pipeline/settings/code.py).
"""

import argparse
import json

from pipeline.errors import run_command
from pipeline.files import write_whole
from pipeline.settings.code import all_code
from pipeline.settings.params import load_params
from pipeline.settings.places import Places


def run(places: Places = Places()) -> None:
    """Write places.code. Raises ParamsError for a mistake in params.yaml."""
    params = load_params(places.params)
    code = all_code(params, places)
    places.code.parent.mkdir(parents=True, exist_ok=True)
    write_whole(places.code, json.dumps(code, indent=2) + "\n")
    print(f"{len(params.datasets)} data sets and {len(params.cells)} cells are named as they should be")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run()


if __name__ == "__main__":
    run_command(main)
