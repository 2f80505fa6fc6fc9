"""Put a data set's table between its two markers in the README, and change nothing else there.

Where there are no markers, table and markers are added at the end.
"""

import argparse

from pipeline.errors import run_command
from pipeline.results.readme import put
from pipeline.settings.places import Places


def run(dataset: str, places: Places = Places()) -> None:
    """Fill the block of `dataset` in the README. Raises DataError without its table, or for half a block."""
    put(dataset, places)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="a key of `datasets` in params.yaml")
    run(parser.parse_args().dataset)


if __name__ == "__main__":
    run_command(main)
