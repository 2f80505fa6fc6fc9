"""Where a project keeps its files: the paths of dvc.yaml, as one value that tests replace by a temporary folder."""

from pathlib import Path

from pipeline.errors import ParamsError


class Places:
    """The files of the project in the folder `root`, by default the current one. tests/test_places.py compares it with
    the outs of dvc.yaml.
    """

    def __init__(self, root: Path = Path()) -> None:
        self.root = root
        # What a person writes, and what DVC writes about it.
        self.params, self.lock, self.readme = root / "params.yaml", root / "dvc.lock", root / "README.md"
        # Data: archives, raw folders and prepared stores.
        self.data = root / "data"
        self.archives = self.data / "archives"
        self.pretrained = self.data / "pretrained"  # ImageNet weights that were placed by hand
        # Trainings.
        self.runs = root / "runs"
        self.logs = self.runs / ".logs"  # logs and state of the runner
        # Reports.
        self.reports = root / "reports"
        self.code = self.reports / "code.json"  # the fingerprints of the code of each stage, as `check` writes them
        self.equivalent_code = self.reports / "equivalent_code.txt"  # changes that were proven to move no number
        self.reference = self.reports / "reference.csv"  # published numbers
        self.published_weights = self.reports / "published_weights.csv"  # where toolboxes publish the weights of cells
        self.benchmarks = self.reports / "benchmarks"  # the page of each device that was measured
        self.tables = self.reports / "tables"
        self.page = self.reports / "index.html"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    def require_own(self, *folders: Path) -> None:
        """Raise ParamsError when one of `folders` is a link: DVC in git would not keep what a stage writes into it."""
        here = self.root.resolve()
        links = [folder for folder in folders if folder.is_symlink()]
        if links and any((place / ".git").exists() for place in (here, *here.parents)):
            raise ParamsError(
                f"{links[0]}: links to {links[0].readlink()}, but DVC keeps results only in a real folder of the "
                "project. For more space put the whole project on the larger disk, or DVC's cache: dvc cache dir"
            )

    def adopted(self, name: str) -> Path:
        """Weights that another toolbox published, in the form of this project."""
        return self.data / "adopted" / f"{name}.safetensors"

    def download(self, dataset: str) -> Path:
        """Where the raw data comes from."""
        return self.data / "downloads" / f"{dataset}.json"

    def raw(self, dataset: str) -> Path:
        return self.data / "raw" / dataset

    def store(self, dataset: str) -> Path:
        return self.data / dataset

    def manifest(self, dataset: str) -> Path:
        return self.store(dataset) / "manifest.json"

    def splits(self, dataset: str) -> Path:
        """Further splits to evaluate on, each a store."""
        return self.store(dataset) / "splits"

    def resume(self, cell: str) -> Path:
        """Unfinished work, outside of what DVC deletes before it runs a stage."""
        return self.runs / ".resume" / cell

    def run(self, cell: str) -> Path:
        return self.runs / cell

    def weights(self, cell: str) -> Path:
        return self.run(cell) / "weights"

    def facts(self, cell: str) -> Path:
        return self.run(cell) / "run.json"

    def history(self, cell: str) -> Path:
        return self.run(cell) / "history.csv"

    def adopted_table(self, suffix: str) -> Path:
        """Published weights as they were measured here, as .json or as a page, .md."""
        return self.reports / f"adopted{suffix}"

    def table(self, dataset: str) -> Path:
        return self.tables / f"{dataset}.md"

    def sheet(self, dataset: str) -> Path:
        """The table as CSV, with everything behind its numbers."""
        return self.tables / f"{dataset}.csv"

    def latex(self, dataset: str) -> Path:
        """The table and its numbers for papers."""
        return self.tables / f"{dataset}.tex"

    def cards(self, dataset: str) -> Path:
        """Model cards."""
        return self.reports / "cards" / dataset

    def data_card(self, dataset: str) -> Path:
        return self.reports / "data" / dataset

    def split_cards(self, dataset: str) -> Path:
        """The data cards of the further splits."""
        return self.data_card(dataset) / "splits"

    def statistics(self, dataset: str) -> Path:
        return self.reports / "statistics" / f"{dataset}.json"

    def records(self, dataset: str) -> Path:
        return self.reports / "records" / dataset

    def record(self, dataset: str, cell: str) -> Path:
        return self.records(dataset) / f"{cell}.json"

    def published(self, dataset: str) -> Path:
        """Where others get the weights of its cells."""
        return self.records(dataset) / "published.csv"

    def costs(self, dataset: str) -> Path:
        """What its cells cost to use, on the machines where that was measured."""
        return self.records(dataset) / "costs.csv"

    def counts(self, dataset: str, cell: str) -> Path:
        """The confusion counts of each image."""
        return self.reports / "images" / dataset / f"{cell}.npz"

    def metrics(self, cell: str) -> Path:
        return self.reports / "metrics" / f"{cell}.json"

    def plots(self, cell: str) -> Path:
        return self.reports / "plots" / cell

    def figures(self, cell: str) -> Path:
        return self.reports / "figures" / cell
