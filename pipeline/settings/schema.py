"""The sections of params.yaml as frozen, checked values. The settings of a cell are in deeplab/config.py."""

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field
from pydantic.dataclasses import dataclass

from deeplab.config import STRICT, Positive, Protocol, check_pattern

ARCHIVE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.(tar|tgz|tar\.gz|zip)")
TOOLS = ("coco", "cvat", "labelme", "yolo")  # formats of annotations
CHECKSUM_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64}

Label = Annotated[int, Field(ge=0, le=255)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)]
SplitName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]  # of a folder, and of a column of the tables


def check_address(key: str, url: str, advice: str) -> None:
    """Raise ValueError for an address of another scheme, or with a password in it, for which there is an `advice`."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{key}: got {url!r}, expected an address that begins with http:// or https://")
    if "@" in urlsplit(url).netloc:
        raise ValueError(f"{key}: got an address with a password, expected none: {advice}")


def check_seeds(seeds: tuple[int, ...]) -> None:
    """Raise ValueError for a seed that is there twice."""
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {list(seeds)}, expected each seed once")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Archive:
    """A file as it was published, and what is taken out of it."""

    name: str
    urls: tuple[str, ...]  # the official address, then mirrors; none when it needs an account
    size: Positive | None  # bytes; null where it was not published
    md5: str | None = None  # at least one of the three
    sha1: str | None = None
    sha256: str | None = None
    folders: Annotated[tuple[str, ...], Field(min_length=1)]  # what is unpacked; nothing else is
    max_unpacked: Positive  # bytes; no more is ever unpacked

    def __post_init__(self) -> None:
        if not ARCHIVE_NAME.fullmatch(self.name):
            raise ValueError(f"name: got {self.name!r}, expected a file name that ends in .tar, .tgz, .tar.gz or .zip")
        for url in self.urls:
            check_address("urls", url, "put it into ~/.netrc")
        if not self.checksums:
            raise ValueError(f"name: got {self.name!r} without a checksum, expected md5, sha1 or sha256 beside it")
        for kind, value in self.checksums.items():
            if not re.fullmatch(f"[0-9a-f]{{{CHECKSUM_DIGITS[kind]}}}", value):
                raise ValueError(f"{kind}: got {value!r}, expected {CHECKSUM_DIGITS[kind]} digits 0-9 a-f")

    @property
    def checksums(self) -> dict[str, str]:
        """The published ones by the name of their algorithm."""
        return {kind: value for kind in CHECKSUM_DIGITS if (value := getattr(self, kind)) is not None}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Checkpoint:
    """A file of published weights."""

    name: str
    urls: tuple[str, ...]
    size: int | None = None  # as those of an archive
    checksums: dict[str, str] = Field(default_factory=dict)
    max_unpacked: int = 2_000_000_000


Download = Archive | Checkpoint


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SplitOptions:
    """How images are divided into the splits train and val: by the hash of their group."""

    val: Annotated[float, Field(gt=0, lt=1)]  # the share of the groups for validation, about
    group: str | None = None  # a regular expression: images in whose path it finds the same stay together

    def __post_init__(self) -> None:
        check_pattern("group", self.group or "")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FolderOptions:
    """Where images and masks lie below the raw folder, and what the masks mean. `{split}` stands for a split's name."""

    images: str | None = None  # the folder of a split's images, or the pattern of their files, with {name}
    masks: str | None = None  # the same for the masks; an image and a mask with the same {name} are a pair
    ids: str | None = None  # beside the two above: a file with one {name} a line, if not all files are meant
    pairs: str | None = None  # instead of the three above: a file with a line `image mask` for each pair
    annotations: str | None = None  # instead of masks: what a labelling tool wrote, a file or a folder
    split: SplitOptions | None = None  # without {split} in the five above: how to draw train and val
    classes: str  # a file with a line `label name` or `label name red green blue` for each class
    masks_are: Literal["labels", "colors", "binary"] = "labels"  # binary: black is label 0, white label 1
    ignore: tuple[Label, ...] = ()  # labels that are neither trained on nor counted
    map: dict[Label, Label] = Field(default_factory=dict)  # a label -> the label that it counts as

    def __post_init__(self) -> None:
        if self.annotations is not None:
            if self.images is None or (self.masks, self.ids, self.pairs) != (None, None, None):
                raise ValueError("annotations: expected with images, and without masks, ids and pairs")
        elif self.pairs is None and (self.images is None or self.masks is None):
            raise ValueError("images: expected images and masks, or pairs instead of both")
        if self.pairs is not None and (self.images, self.masks, self.ids) != (None, None, None):
            raise ValueError("pairs: expected without images, masks and ids")
        named, plain = ["split", "name"], ["split"]
        if self.annotations is not None:
            named = plain
        places = {"images": named, "masks": named, "ids": plain, "pairs": plain, "annotations": plain}
        for key, words in places.items():
            pattern = getattr(self, key) or ""
            if self.split and "{split}" in pattern:
                raise ValueError(f"split: expected without {{split}} in {key}, which names the splits already")
            odd = set(re.findall(r"\{(.*?)\}", pattern)) - set(words)
            if odd or pattern.count("{name}") > 1 or "{name}" in pattern.rpartition("/")[0]:
                known = " and ".join(f"{{{word}}}" for word in words)
                raise ValueError(f"{key}: got {pattern!r}, expected only {known} in braces, {{name}} behind the last /")
        for source, target in self.map.items():
            if source in self.ignore:
                raise ValueError(f"map: label {source} is in ignore too")
            if target in self.map:
                raise ValueError(f"map: label {source} counts as {target}, which counts as {self.map[target]} itself")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DatasetConfig:
    """A data set as `download` and `prepare` read it."""

    title: str  # heads its table
    format: str  # a key of FORMATS
    archives: tuple[Archive, ...]  # none: its raw folder is placed by hand, or it has none
    images: dict[str, Positive]  # split -> how many images it has as published
    allow_subset: bool  # accept fewer
    store: Literal["packed", "files"] = "packed"  # pack the decoded images, or decode them each time: same pixels
    folder: FolderOptions | None = None  # of the formats folder, coco, cvat, labelme and yolo

    def __post_init__(self) -> None:
        if (self.format in ("folder", *TOOLS)) != (self.folder is not None):
            known = ", ".join(("folder", *TOOLS))
            raise ValueError(f"folder: expected with the formats {known}, and only there, got `format: {self.format}`")
        if self.folder and (self.format in TOOLS) != (self.folder.annotations is not None):
            raise ValueError(f"folder.annotations: expected with the formats {', '.join(TOOLS)}, and only there")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SlurmOptions:
    """`runtime.slurm` in params.yaml. GPUs are `runtime.gpus_per_cell`."""

    partition: str | None  # null is the cluster's default
    time: Positive  # minutes; a cell that needs more is queued again and goes on
    cpus: Positive
    options: dict[str, str]  # further words of sbatch, as {account: vision, qos: long}

    def __post_init__(self) -> None:
        # They become lines `#SBATCH --key=value` of a script: what follows a line break would be run.
        if odd := [key for key in self.options if not re.fullmatch(r"[a-z][a-z-]*", key)]:
            raise ValueError(f"options: got {odd[0]!r}, expected a word of sbatch in lower-case letters and -")
        for name, value in {"partition": self.partition or "", **self.options}.items():
            if not value.isprintable():
                place = name if name == "partition" else "options"
                raise ValueError(f"{place}: got {value!r}, expected text in one line")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RuntimeConfig:
    """What cannot move a number."""

    device: str
    gpus_per_cell: Positive  # GPUs that share the batch of one cell
    workers: Annotated[int, Field(ge=0)]
    log_every: Positive
    checkpoint_every: Annotated[float, Field(gt=0)]  # seconds
    validate_every: Annotated[int, Field(ge=0)]  # epochs
    tracking_every: Annotated[float, Field(gt=0)]  # seconds
    log_weights: bool  # copy the weights of shown results to MLflow
    spots: Annotated[int, Field(ge=0)] = 2  # pairs of states that each training keeps, to be checked by
    slurm: SlurmOptions


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PublishConfig:
    """Where `grid publish` puts the results of a cell."""

    remote: str | None = None  # a DVC remote
    address: str | None = None  # where anybody reads that remote

    def __post_init__(self) -> None:
        if self.address is not None:
            check_address("address", self.address, "everybody will read it")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GridRow:
    """A row of `grid`: what a cell does not share with the others."""

    dataset: str
    backbone: str
    output_stride: int
    pretrained: bool | None = None
    init: dict[str, Any] | None = None  # see InitConfig; null: not that of the recipe
    model: dict[str, Any] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    augment: dict[str, Any] = Field(default_factory=dict)
    seeds: Seeds | None = None  # in place of those of all cells

    def __post_init__(self) -> None:
        check_seeds(self.seeds or ())


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Sections:
    """The file as it is written, before recipes and rows are laid over the shared sections."""

    grid: dict[str, GridRow]
    seeds: Seeds
    datasets: dict[str, DatasetConfig]
    recipes: dict[str, dict[str, Any]]
    model: dict[str, Any]
    train: dict[str, Any]
    augment: dict[str, Any]
    protocols: Annotated[dict[str, Protocol], Field(min_length=1)]
    eval_splits: dict[str, tuple[SplitName, ...]] = Field(default_factory=dict)  # data set -> splits
    runtime: RuntimeConfig
    publish: PublishConfig = Field(default_factory=PublishConfig)
    prose: tuple[str, ...] = ()  # Markdown files with values, beside the README
    columns: tuple[str, ...] = ()  # more columns of the tables; pipeline/results/columns.py knows their names

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns: got {list(self.columns)}, expected each column once")
        if odd := [name for name in self.prose if not name.endswith(".md") or name.startswith("/") or ".." in name]:
            raise ValueError(f"prose: got {odd[0]!r}, expected a Markdown file of this folder, such as docs/paper.md")
