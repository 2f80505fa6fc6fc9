"""Write the page of results: one HTML file that needs no server and no network.

Tables beside published numbers, curves, classes, confusions, predictions, cost and provenance, from the files that the
stages wrote. What is missing is said on the page, and the rest is shown. The same files give the same bytes.
"""

import argparse
from pathlib import Path

from pipeline.errors import run_command
from pipeline.files import write_whole
from pipeline.settings.params import PARAMS, load_params


def run(reports: Path, runs: Path, data: Path, out: Path, params_file: Path = PARAMS) -> None:
    """Write the page `out` from `reports` (tables, plots, figures, cards), `runs` and the prepared stores in `data`."""
    params = load_params(params_file)
    from pipeline.page.inputs import Folders, read_pages
    from pipeline.page.layout import write_page

    pages = read_pages(params, Folders(reports=reports, runs=runs, data=data))
    text = write_page(pages)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, text)
    for page in pages:
        for gap in page.gaps:
            print(f"{page.name}: {gap}")
    print(f"{out}: {len(text.encode()) / 1e6:.1f} MB. Open it in a browser.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, default=Path("reports"), help="where tables and evaluate write")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where train writes")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the prepared stores")
    parser.add_argument("--out", type=Path, default=Path("reports/index.html"), help="the page")
    arguments = parser.parse_args()
    run(arguments.reports, arguments.runs, arguments.data, arguments.out)


if __name__ == "__main__":
    run_command(main)
