"""Take the weights of another network of this project: `init` of a row. Which file that is, parent.py says."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab.config import Cell
from deeplab.errors import DataError, SettingsError
from pipeline.training.facts import InitFacts
from pipeline.training.provenance import file_sha256

if TYPE_CHECKING:
    from torch import Tensor, nn

OF_CLASSES = ("classifier.", "auxiliary.2.")  # one channel for each class
COUNTER = "num_batches_tracked"  # of batch normalisation; no weight
PICKLES = (b"PK", b"\x80")  # how a file of torch.save begins


def take_weights(network: "nn.Module", file: Path, cell: Cell, classes: Sequence[str]) -> InitFacts:
    """Copy from `file` every tensor of `network` that agrees in name and shape. Returns what was taken and what not.

    The layers of the classes are taken when the file names the same `classes` in the same order; a file that names none
    has to have as many. Raises DataError for a file that is damaged, is no safetensors, has NaN or nothing to take, and
    SettingsError when its network expects another mean or std.
    """
    import torch

    init = cell.init
    assert init
    tensors, about = read_tensors(file)
    require_same_normalisation(file, about, cell)
    named = about.get("classes") if isinstance(about.get("classes"), list) else None
    state = network.state_dict()
    rest: dict[str, str] = {}
    for key, own in state.items():
        found = tensors.get(key)
        if found is None:
            rest[key] = "missing"
        elif found.shape != own.shape:
            rest[key] = f"{size(found)} instead of {size(own)}"
        elif named is not None and named != list(classes) and key.startswith(OF_CLASSES):
            rest[key] = "other classes"
        elif not bool(found.isfinite().all()):
            raise DataError(f"{file}: {key} has NaN or infinity. Get the file again, or train it again.")
        else:
            with torch.no_grad():
                own.copy_(found)  # a view of the network's own tensor
    if not weights_in(state.keys() - rest.keys()):
        example = f"{min(tensors)} instead of {min(weights_in(state))}" if tensors else "it is empty"
        raise DataError(
            f"{file}: no tensor agrees in name and shape with the network ({example}). Give weights of this project "
            f"with the backbone {cell.model.backbone}."
        )
    return InitFacts(
        source=init.label,
        sha256=file_sha256(file),
        taken=len(weights_in(state.keys() - rest.keys())),
        not_taken={key: rest[key] for key in weights_in(rest)},
        unused=tuple(sorted(tensors.keys() - state.keys())),
    )


def weights_in(keys: Iterable[str]) -> list[str]:
    """The names in `keys` that are no counters."""
    return [key for key in keys if not key.endswith(COUNTER)]


def size(tensor: "Tensor") -> str:
    """The shape of a tensor as text: 512x256x1x1."""
    return "x".join(map(str, tensor.shape)) or "a number"


def read_tensors(file: Path) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """The tensors of a safetensors file, and what it states about itself: nothing for a file of somebody else.

    Raises DataError for another format and for a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    from deeplab.segmenter import read_about

    try:
        with safe_open(file, framework="pt") as content:
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118  not a dictionary
    except (SafetensorError, OSError) as error:
        with file.open("rb") as content:
            is_pickle = content.read(2).startswith(PICKLES)
        what = f"not a safetensors file, or cut short ({str(error).partition(chr(10))[0]}). Get it again."
        if is_pickle:
            what = "a pickle, which can run code and is not read. Save its tensors as safetensors."
        raise DataError(f"{file}: {what}") from None
    try:
        return tensors, read_about(file)
    except DataError:
        return tensors, {}


def require_same_normalisation(file: Path, about: dict[str, Any], cell: Cell) -> None:
    """Raise SettingsError when the network in `file` was trained with another mean or std than that of `cell`."""
    settings = about.get("settings")
    model = settings.get("model") if isinstance(settings, dict) else None
    for key in ("mean", "std"):
        theirs, own = (model or {}).get(key), list(getattr(cell.model, key))
        if theirs is not None and list(theirs) != own:
            raise SettingsError(
                f"model.{key}: got {own}, but the weights in {file} expect {theirs}. Set it in the row."
            )


def in_one_line(facts: InitFacts) -> str:
    """What was taken and what not, for the log: the parts that are new, each with an example."""
    parts: dict[str, list[str]] = {}
    for key in facts.not_taken:
        parts.setdefault(key.partition(".")[0], []).append(key)
    new = [
        f"{part} {len(keys)} ({keys[0].removeprefix(part + '.')}: {facts.not_taken[keys[0]]})"
        for part, keys in parts.items()
    ]
    count = facts.taken + len(facts.not_taken)
    text = f"starting from {facts.source} (SHA-256 {facts.sha256[:12]}): {facts.taken} of {count} tensors taken"
    unused = f"; {len(facts.unused)} tensors of the file unused" if facts.unused else ""
    return text + (f"; new: {', '.join(new)}" if new else "") + unused
