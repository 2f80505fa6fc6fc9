"""Put the weights behind the tables where others can get them, and get them from there.

The place is a DVC remote, so `dvc push` and `dvc pull` work on it too. A file is linked only after it was read back
from there and has the SHA-256 of the record.
"""

import hashlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

from deeplab.segmenter import WEIGHTS
from pipeline.errors import MismatchError, ParamsError
from pipeline.predict import export
from pipeline.results.records import Place, Result, read_results
from pipeline.settings.links import LOG, Published, read_published, write_published
from pipeline.settings.params import Params, load_params
from pipeline.settings.places import Places
from pipeline.settings.schema import PublishConfig
from pipeline.training.facts import read_run
from pipeline.training.provenance import file_sha256

TIMEOUT = 60  # seconds without a byte from the address


def publish(names: list[str], places: Places) -> Iterator[str]:
    """Publish the cells `names`, by default all that have a result here; yields a line about each.

    Raises ParamsError without a remote or for a cell without a result, OSError when the remote or the address fails,
    MismatchError when a file differs from its record, here or there.
    """
    params = load_params(places.params)
    target = required(params)
    for dataset, cells in wanted(names, params, places).items():
        for name, results in cells.items():
            files = files_of(name, results, places)
            push(name, files, target, places)
            entries = [
                Published(name, title(file, name, places), sha, address_of(file, target)) for file, sha in files.items()
            ]
            for entry in entries:
                require_same(entry)
            path = places.published(dataset)
            others = [entry for entry in read_published(path) if entry.cell != name]
            write_published(path, others + entries)
            where = f", read back from {target.address}" if target.address else ""
            yield f"{name}: {len(files)} files in the remote {target.remote!r}{where}"
        yield f"To link them in the README: dvc repro -s tables@{dataset} readme@{dataset}"


def pull(names: list[str], places: Places) -> Iterator[str]:
    """Get weights, log and facts of the cells `names` from the remote; yields a line about each.

    Raises OSError when the remote fails, MismatchError when a file is not the published one.
    """
    params = load_params(places.params)
    datasets = {name: params.cell(name).dataset for name in names}
    target = required(params)
    for name, dataset in datasets.items():
        published = {entry.file: entry for entry in read_published(places.published(dataset)) if entry.cell == name}
        if not published:
            raise ParamsError(f"{name}: not published, by {places.published(dataset)}")
        with remote(target, places) as repo:
            repo.pull(targets=targets(name, places), remote=target.remote, force=False)
        for file, entry in published.items():
            path = places.history(name) if file == LOG else places.weights(name) / file
            if not path.exists() or file_sha256(path) != entry.sha256:
                raise MismatchError(f"{path}: not the published file. Run: dvc checkout {path}")
        yield f"{name}: {len(published)} files, as published"


def publish_to_hub(names: list[str], repository: str, places: Places) -> Iterator[str]:
    """Upload one cell to a repository of the Hugging Face Hub, which is private when it is new; yields its address.

    Raises ParamsError for more than one cell, OSError when the Hub refuses, MismatchError when other bytes arrived.
    """
    from huggingface_hub import HfApi, RepoFile
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    if len(names) != 1:
        raise ParamsError(f"--hub: got {len(names)} cells, expected one: a repository holds one network")
    with tempfile.TemporaryDirectory() as folder:
        export.run(names[0], "huggingface", Path(folder), places=places)
        own = file_sha256(Path(folder) / WEIGHTS)
        try:
            hub = HfApi()
            hub.create_repo(repository, private=True, exist_ok=True)
            commit = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Publish {names[0]}")
            (there,) = hub.get_paths_info(repository, [WEIGHTS], revision=commit.oid)
        except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
            raise OSError(f"--hub {repository}: {' '.join(str(error).split())[:300]} Sign in: hf auth login") from None
    if not isinstance(there, RepoFile) or there.lfs is None or there.lfs.sha256 != own:
        raise MismatchError(f"{repository}: {WEIGHTS} arrived with another SHA-256. Upload it again.")
    yield f"{names[0]}: at {commit.commit_url}; private until you change it there, as is the license in its README.md"


def required(params: Params) -> PublishConfig:
    """Where to publish. Raises ParamsError when params.yaml names no place."""
    if params.publish.remote is None:
        raise ParamsError(
            "params.yaml: publish.remote: missing. Add a place: dvc remote add NAME URL; then write here: "
            "publish: {remote: NAME}"
        )
    return params.publish


def wanted(names: list[str], params: Params, places: Places) -> dict[str, dict[str, list[Result]]]:
    """Data set -> cell -> its current results, for `names` or else for every cell that was trained here."""
    found: dict[str, dict[str, list[Result]]] = {}
    for dataset in dict.fromkeys([params.cell(name).dataset for name in names] or params.datasets):
        results: dict[Place, Result]
        results, reasons = read_results(dataset, params, places)
        for name in params.cells_of(dataset):
            own = [result for (cell, _), result in results.items() if cell == name]
            if name in names and not own:
                raise ParamsError(f"{name}: no result to publish: {reasons[name]}")
            if name in names or (not names and own and places.weights(name).exists()):
                found.setdefault(dataset, {})[name] = own
    return found


def files_of(name: str, results: list[Result], places: Places) -> dict[Path, str]:
    """The weights of each seed, the states that its training kept, and the log, with their SHA-256.

    Raises MismatchError for weights without a record and for states that run.json does not name.
    """
    files = {}
    facts = read_run(places.facts(name))
    for result in results:
        file = places.weights(name) / result.weights["file"]
        if not file.exists() or file_sha256(file) != result.weights["sha256"]:
            raise MismatchError(f"{file}: not the weights of the record. Run: dvc checkout {file}")
        files[file] = result.weights["sha256"]
        for spot in facts[str(result.seed)].spots if str(result.seed) in facts else ():
            file = places.weights(name) / spot.file(result.seed)
            if not file.exists() or file_sha256(file) != spot.sha256:
                raise MismatchError(f"{file}: not the state of {places.facts(name)}. Run: dvc checkout {file}")
            files[file] = spot.sha256
    return {**files, places.history(name): file_sha256(places.history(name))}


def title(file: Path, name: str, places: Places) -> str:
    """The name of a published file, below the folder of the weights."""
    return LOG if file == places.history(name) else file.relative_to(places.weights(name)).as_posix()


def targets(name: str, places: Places) -> list[str]:
    """The outputs of a training, as DVC knows them."""
    return [str(path) for path in (places.weights(name), places.history(name), places.facts(name))]


def push(name: str, files: dict[Path, str], target: PublishConfig, places: Places) -> None:
    """Push the outputs of a cell, and read them back into an empty cache."""
    with remote(target, places) as repo:
        repo.push(targets=targets(name, places), remote=target.remote)
    with tempfile.TemporaryDirectory(dir=places.runs) as cache, remote(target, places, cache) as repo:
        repo.fetch(targets=targets(name, places), remote=target.remote)
        arrived = {file_sha256(path) for path in Path(cache).rglob("*") if path.is_file()}
    if missing := [file for file, sha in files.items() if sha not in arrived]:
        raise MismatchError(
            f"{missing[0]}: arrived damaged in the remote {target.remote!r}. Remove it there, then again."
        )


@contextmanager
def remote(target: PublishConfig, places: Places, cache: str | None = None) -> Iterator[Any]:
    """The DVC repository, with `cache` in place of its own. A storage's error becomes an OSError."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    words = BufferingHandler(capacity=1000)  # DVC logs why a file could not be transferred, and raises how many
    logger = logging.getLogger("dvc")
    shown, logger.handlers = logger.handlers, [words]
    try:
        with Repo(str(places.root), config={"cache": {"dir": cache}} if cache else None) as repo:
            yield repo
    except (DvcException, ImportError, OSError, ValueError) as error:
        said = [str(error), *(record.getMessage() for record in words.buffer if record.levelno >= logging.ERROR)]
        raise OSError(f"remote {target.remote!r}: {' '.join('; '.join(said[:2]).split())}") from None
    finally:
        logger.handlers = shown


def address_of(file: Path, target: PublishConfig) -> str:
    """Where a file that DVC pushed can be read below the public address: DVC names files by their MD5."""
    if not target.address:
        return ""
    md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    return f"{target.address.rstrip('/')}/files/md5/{md5[:2]}/{md5[2:]}"


def require_same(entry: Published) -> None:
    """Raise OSError or MismatchError unless the address gives the file, to anybody."""
    import requests

    if not entry.url:
        return
    own = hashlib.sha256()
    try:
        with requests.get(entry.url, stream=True, timeout=TIMEOUT) as answer:
            answer.raise_for_status()
            for block in answer.iter_content(1 << 20):
                own.update(block)
    except requests.RequestException as error:
        raise OSError(f"{entry.url}: {str(error).partition(chr(10))[0]}") from None
    if own.hexdigest() != entry.sha256:
        raise MismatchError(f"{entry.url}: another SHA-256 than {entry.file} of {entry.cell}. It is not linked.")
