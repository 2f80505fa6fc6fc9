"""Write the page of results: one HTML file that needs no server and no network.

It shows tables beside published numbers, curves, classes, confusions, predictions, cost and provenance, from the files
that the stages wrote. A note names each file that is missing. The same files give the same bytes.
"""

import argparse

from pipeline.errors import run_command
from pipeline.files import write_whole
from pipeline.settings.params import load_params
from pipeline.settings.places import Places


def run(places: Places = Places()) -> None:
    """Write the page."""
    params = load_params(places.params)
    from pipeline.page.html import interval, percent
    from pipeline.page.inputs import read_pages
    from pipeline.page.layout import write_page
    from pipeline.results.table import plain_table

    pages = read_pages(params, places)
    text = write_page(pages)
    places.page.parent.mkdir(parents=True, exist_ok=True)
    write_whole(places.page, text)
    for page in pages:
        if page.measured:
            lines = [
                (cell.name, f"{percent(100 * (cell.miou or 0))}%", interval(page.interval(cell)))
                for cell in page.measured
            ]
            print(f"{page.title}\n{plain_table(lines)}")
            print(*(f"{page.name}: {gap}\n" for gap in page.gaps), sep="", end="")
    if waiting := [page.title for page in pages if not page.measured]:
        print(f"Not measured: {', '.join(waiting)}. To see what they cost: grid plan")
    print(f"{places.page}: {len(text.encode()) / 1e6:.1f} MB. Open it in a browser.")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run()


if __name__ == "__main__":
    run_command(main)
