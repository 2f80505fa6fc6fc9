"""Find the safetensors file that a cell starts from: of another cell, by its path, or of the Hugging Face Hub."""

from pathlib import Path
from typing import Any

from deeplab.config import InitConfig
from deeplab.errors import DataError
from pipeline.settings.code import code_of
from pipeline.settings.equivalent import oldest, read_equivalences
from pipeline.settings.params import Params
from pipeline.settings.places import Places
from pipeline.training.facts import read_run
from pipeline.training.provenance import file_sha256


def find_starts(name: str, params: Params, places: Places) -> dict[int, Path]:
    """For each seed of the cell `name` the safetensors file that it starts from; nothing without `init`.

    Raises DataError when it is missing, is not the one that the settings name, or comes from a cell that is stale.
    """
    init = params.cell(name).init
    if init is None:
        return {}
    if init.cell:
        return {seed: weights_of_parent(init.cell, seed, name, params, places) for seed in params.runs[name]}
    file = download(init) if init.hub else named_file(places.root / (init.file or ""))
    if not file.is_file():
        raise DataError(f"{file}: not found. The cell {name} starts from it: put it there, or change init of its row.")
    if (found := file_sha256(file)) != init.sha256:
        raise DataError(
            f"{file}: has the SHA-256 {found}, but init.sha256 of the cell {name} is {init.sha256}. "
            "Put the right file there, or change the setting."
        )
    return dict.fromkeys(params.runs[name], file)


def named_file(path: Path) -> Path:
    """The weights in `path`, a file or a folder in the form of a Hugging Face repository."""
    from deeplab.segmenter import WEIGHTS

    return path / WEIGHTS if path.is_dir() else path


def weights_of_parent(parent: str, seed: int, name: str, params: Params, places: Places) -> Path:
    """The weights of `seed` of the cell `parent`, from which `name` starts.

    Raises DataError when they are absent or stale.
    """
    file, cell = places.weights(parent) / f"seed{seed}.safetensors", params.cell(parent)
    facts = read_run(places.facts(parent)).get(str(seed))
    remedy = f"Train it first: dvc repro {params.stage('train', parent)}"
    if not file.exists() or facts is None or facts.weights is None:
        raise DataError(f"{file}: not found, but the cell {name} starts from it. {remedy}")
    code = oldest(facts.fingerprint.get("code", ""), read_equivalences(places.equivalent_code))
    manifest = places.manifest(cell.dataset)
    same = {
        "settings": facts.fingerprint.get("cell") == cell.fingerprint,
        "data": not manifest.exists() or facts.fingerprint.get("data") == file_sha256(manifest),
        "code": code == code_of("train", params, places, parent),
    }
    if differ := [what for what, agrees in same.items() if not agrees]:
        raise DataError(
            f"{file}: trained with different {' and '.join(differ)}. The cell {name} starts from it. {remedy}"
        )
    if file_sha256(file) != facts.weights.sha256:
        raise DataError(f"{file}: not the file that {places.facts(parent)} describes. Run: dvc checkout --force {file}")
    return file


def download(init: InitConfig) -> Path:
    """The weights file of a Hub repository, with its config.json beside it. Cached files are taken without a network.

    Raises DataError when the Hub does not give it.
    """
    import huggingface_hub

    from deeplab.backbone import first_line
    from deeplab.segmenter import CONFIG, WEIGHTS

    assert init.hub
    wanted: dict[str, Any] = {"revision": init.revision, "allow_patterns": [WEIGHTS, CONFIG]}
    try:
        cached = Path(huggingface_hub.snapshot_download(init.hub, local_files_only=True, **wanted)) / WEIGHTS
        if cached.exists() and file_sha256(cached) == init.sha256:
            return cached
    except Exception:  # noqa: BLE001, S110  not in the cache
        pass
    try:
        hub = huggingface_hub.HfApi()
        hub.model_info(init.hub, revision=init.revision, timeout=5)  # one try: the download tries for a minute
        return Path(huggingface_hub.snapshot_download(init.hub, **wanted)) / WEIGHTS
    except Exception as error:  # noqa: BLE001  from OSError to those of two HTTP libraries
        raise DataError(
            f"init.hub: {init.hub!r} is not in the Hugging Face cache and could not be downloaded "
            f"({first_line(error)}). Check its name and your login (hf auth login), or use init.file."
        ) from None
