"""Bring weights that others published into the form of this project, and measure them by its protocol.

A checkpoint is read without running code from it, every tensor must find its place in the network of the cell, and the
result is written with its origin. It fills a table of its own (adopted.py).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deeplab.config import Cell, digest
from deeplab.errors import DataError, NonFiniteError, SettingsError
from pipeline.data.archives import provide
from pipeline.data.fetch import Patience
from pipeline.errors import BusyError, ParamsError, describe
from pipeline.files import claimed
from pipeline.progress import shown
from pipeline.settings.params import Params, load_params
from pipeline.settings.places import Places
from pipeline.settings.schema import Checkpoint
from pipeline.training.provenance import file_sha256
from pipeline.verify.adopted import Adopted, add, inputs, read_known
from pipeline.verify.toolboxes import TOOLBOXES

if TYPE_CHECKING:
    from deeplab.store import Store

PATIENCE = Patience(tries=4)
# The first digits of the SHA-256, as torch.utils.model_zoo has it; digits alone may be a date.
NAMED = re.compile(r"-(?=[0-9]*[a-f])([0-9a-f]{8,64})\.pth$")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint on this machine, and where it is from."""

    file: Path
    origin: str  # its address, or the name of the file
    sha256: str

    @property
    def name(self) -> str:
        return self.origin.rpartition("/")[2]


def adopt_known(names: list[str], toolbox: str | None, places: Places, patience: Patience = PATIENCE) -> Iterator[str]:
    """Adopt the weights of reports/published_weights.csv: of the cells `names`, by default of all.

    Yields a line about each. After a failure the others are adopted too.

    Raises ParamsError for cells of which none are known, DataError at the end when one failed.
    """
    params = load_params(places.params)
    for name in names:
        params.cell(name)
    lines = [known for known in read_known(places.published_weights) if known.cell in (names or params.cells)]
    lines = [known for known in lines if toolbox in (None, known.toolbox)]
    if not lines:
        whose = f" of {names[0]}" if names else ""
        raise ParamsError(
            f"{places.published_weights}: lists no weights{whose}{f' by {toolbox}' if toolbox else ''}. Add a line, or "
            "name a file: grid adopt CELL FILE --from TOOLBOX"
        )
    failed = 0
    for known in lines:
        try:
            yield adopt(known.cell, known.url, known.toolbox, places, patience)
        except (DataError, SettingsError, NonFiniteError, BusyError, OSError) as error:
            failed += 1
            yield f"{known.cell}: {describe(error)}"
    if failed:
        raise DataError(f"{failed} of {len(lines)} published weights were not adopted, for the reasons above")


def adopt(name: str, source: str, toolbox: str | None, places: Places, patience: Patience = PATIENCE) -> str:
    """Adopt the checkpoint `source`, a file or an address, of `toolbox` for the cell `name`. Returns a line about it.

    Raises ParamsError for an unknown cell, SettingsError when the toolbox has no network like that of the cell,
    DataError for data that is not prepared and for a file that is not the network of the cell, OSError from the disk.
    """
    params = load_params(places.params)
    cell = params.cell(name)
    if toolbox is None or toolbox not in TOOLBOXES:
        raise ParamsError(f"--from: {f'got {toolbox!r}' if toolbox else 'missing'}, expected {', '.join(TOOLBOXES)}")
    if not places.manifest(cell.dataset).exists():
        stage = params.stage("prepare", cell.dataset)
        raise DataError(
            f"{places.store(cell.dataset)}: not prepared, and weights are measured on it. Run: dvc repro {stage}"
        )

    from deeplab.store import Store
    from pipeline.training.publish import save_weights
    from pipeline.verify.toolboxes.checkpoint import as_ours

    store = Store(places.store(cell.dataset))
    found = obtain(source, places, patience)
    published = published_number(found, name, toolbox, places)
    model, network = as_ours(found.file, TOOLBOXES[toolbox], name, cell.model, store.classes)
    file = places.adopted(f"{name}_{toolbox}_{found.sha256[:8]}")
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {"adopted_from": toolbox, "source": found.origin, "source_sha256": found.sha256}
    cell = replace(cell, model=model)
    save_weights(network, file, store, cell, about)
    entry = Adopted(
        cell=name,
        toolbox=toolbox,
        source=found.origin,
        source_sha256=found.sha256,
        published=published,
        scores=measure(file, name, cell, store, params),
        departs=departures(cell, store, params),
        inputs=inputs(name, params, places, store.fingerprint),
    )
    add(entry, params, places)
    beside = "" if published is None else f", published {published:.2f} %"
    page = places.adopted_table(".md")
    return f"{name}: {100 * entry.scores['mIoU']:.2f} %{beside}; weights in {file}, table in {page}"


def obtain(source: str, places: Places, patience: Patience) -> Source:
    """The checkpoint, downloaded to data/archives if `source` is an address.

    Raises DataError when it is missing, cannot be fetched, or is not the file that its name promises.
    """
    if not source.startswith(("http://", "https://")):
        file = Path(source)
        if not file.is_file():
            raise DataError(f"{file}: no such file, and no address that begins with http:// or https://")
        found = Source(file=file, origin=file.name, sha256=file_sha256(file))
        require_named(found)
        return found
    address = urlsplit(source)
    if "@" in address.netloc:
        raise ParamsError("got an address with a password, expected none: put it into ~/.netrc")
    plain = address._replace(query="", fragment="").geturl()  # a query may hold a token
    name = f"{digest(source)[:8]}-{re.sub(r'[^A-Za-z0-9._-]', '_', address.path.rpartition('/')[2])}"
    with claimed(places.archives / f".{name}.lock", name, "downloaded"):
        sha256 = provide(Checkpoint(name=name, urls=(source,)), places.archives, patience)["sha256"]
        found = Source(file=places.archives / name, origin=plain, sha256=sha256)
        try:
            require_named(found)
        except DataError:
            found.file.replace(found.file.with_name(f"{name}.bad"))
            raise
    return found


def require_named(found: Source) -> None:
    """Raise DataError when the name of a file states another SHA-256."""
    if (stated := NAMED.search(found.name)) and not found.sha256.startswith(stated[1]):
        raise DataError(
            f"{found.file}: its SHA-256 begins with {found.sha256[: len(stated[1])]}, but its name states {stated[1]}: "
            "damaged, or another file. Get it again."
        )


def published_number(found: Source, name: str, toolbox: str, places: Places) -> float | None:
    """The published mIoU of a file, in percent; None for one that reports/published_weights.csv does not list.

    Raises DataError for a file that is listed for other cells: no tensor shows an output stride.
    """
    known = [each for each in read_known(places.published_weights) if each.toolbox == toolbox]
    listed = {each.cell: each.published for each in known if each.url.rpartition("/")[2] == found.name}
    if listed and name not in listed:
        raise DataError(f"{found.file}: weights of {min(listed)}, not of {name}, by {places.published_weights}")
    return listed.get(name)


def measure(file: Path, name: str, cell: Cell, store: "Store", params: Params) -> dict[str, float]:
    """The scores of adopted weights on the validation split, under the first protocol."""
    from deeplab.counts import gather
    from deeplab.inference import evaluate_each
    from deeplab.metrics import score
    from pipeline.results.scores import scores_of
    from pipeline.training.device import select_device, set_arithmetic
    from pipeline.training.weights import load_network

    split, protocol = store.split(cell.recipe.val_split), next(iter(params.protocols.values()))
    device = select_device(params.runtime.device)
    set_arithmetic(cell.train)
    network = load_network(file, name, cell, len(store.classes), protocol).to(device)
    progress = partial(shown, title=f"{name} {file.stem}")
    matrices = evaluate_each(network, split, len(store.classes), cell.inference, protocol, device, progress)
    counts = gather(matrices, [record.id for record in split.records], store.classes)
    return scores_of(score(counts.matrix), counts).model_dump(exclude_unset=True)  # no interval for one image


def departures(cell: Cell, store: "Store", params: Params) -> str:
    """How the evaluation differs from a published one, which is on all images, each whole and at one scale."""
    from deeplab.segmenter import WHOLE

    split = cell.recipe.val_split
    used, full = len(store.split(split)), params.dataset(cell.dataset).images[split]
    title, protocol = next(iter(params.protocols.items()))
    reasons = {
        f"subset: {used} of {full} images": used < full,
        f"protocol {title}": protocol != WHOLE,
        "align: true": cell.inference.align,
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds)
