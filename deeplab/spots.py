"""Spots: pairs of states of a training, some steps apart, so that others can repeat these steps and compare the bits.

The first state of a pair is kept as a file: `network.<name>` and `momentum.<number of the parameter>` as safetensors.
Of the second, the SHA-256 of such a file is enough. With the losses of the steps between, a comparison also names the
first step that differs. Equal states have equal bytes, on every device and with every version of torch.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from deeplab.checkpoint import State, write_durably
from deeplab.config import TrainConfig
from deeplab.errors import DataError
from deeplab.step import build_optimizer

APART = 20  # steps between the two states of a pair

Pair = tuple[int, int]  # the steps done before its first and its second state


def planned(steps: int, count: int) -> list[Pair]:
    """Up to `count` pairs that are spread evenly over a training of `steps` steps and do not overlap; the last one ends
    with it. A training shorter than a pair is one pair.
    """
    count = min(count, max(steps // APART, 1))
    ends = [steps * number // count for number in range(1, count + 1)]
    return [(max(end - APART, 0), end) for end in ends]


class Spots:
    """The pairs of one training, in its folder."""

    def __init__(self, folder: Path, pairs: list[Pair]) -> None:
        self.folder, self.pairs = folder, pairs
        if pairs:
            folder.mkdir(exist_ok=True)

    def keep(self, done: int, state: Callable[[int], State]) -> None:
        """Write what a pair needs of `state(done)`, the one after `done` steps. After a kill it may come again."""
        for start, stop in self.pairs:
            if done == start:
                write_durably(state_file(self.folder, start), pack(state(start)))
            elif done == stop and state_file(self.folder, start).exists():  # not where the pairs were chosen too late
                after = state(stop)
                spot = {
                    "start": start,
                    "stop": stop,
                    "sha256": hashlib.sha256(state_file(self.folder, start).read_bytes()).hexdigest(),
                    "after": hashlib.sha256(pack(after)).hexdigest(),
                    "losses": after["losses"]["recent"][start - stop :],
                }
                write_durably(spot_file(self.folder, start), json.dumps(spot).encode())


def state_file(folder: Path, start: int) -> Path:
    """Where the first state of a pair is kept."""
    return folder / f"step-{start:09d}.safetensors"


def spot_file(folder: Path, start: int) -> Path:
    """Where the numbers of a finished pair are kept: steps, hashes and losses."""
    return folder / f"step-{start:09d}.json"


def pack(state: State) -> bytes:
    """The part of a checkpoint that later steps depend on."""
    momentum = {f"momentum.{number}": held["momentum_buffer"] for number, held in state["optimizer"]["state"].items()}
    tensors = momentum | {f"network.{name}": value for name, value in state["network"].items()}
    about = {"step": state["step"], "scaler": state["scaler"]}
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return save(plain, {"about": json.dumps(about, sort_keys=True)})


def unpack(file: Path, step: int, network: nn.Module, train: TrainConfig) -> State:
    """The checkpoint in `file`, from which a training goes on after `step`, with the settings of `train`.

    `network` is in the memory format of the training. Raises DataError for anything but what `pack` gives for such a
    network.
    """
    optimizer, expected = build_optimizer(network, train).state_dict(), network.state_dict()
    try:
        with safe_open(file, framework="pt") as content:
            about = json.loads((content.metadata() or {})["about"])
            for number, held in optimizer["state"].items():  # copied, because it has the order in memory of the weights
                held["momentum_buffer"].copy_(content.get_tensor(f"momentum.{number}"))
            state = {name: content.get_tensor(f"network.{name}") for name in expected}
        found, scaler = about["step"], about["scaler"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"{file}: not a state of such a training ({str(error).partition(chr(10))[0]})") from None
    if found != step or any(state[name].shape != value.shape for name, value in expected.items()):
        raise DataError(f"{file}: not the state of such a network after step {step}")
    nothing = {"losses": {"values": [], "recent": [], "spikes": 0}, "selection": None, "history_length": 0}
    return {"network": state, "optimizer": optimizer, "scaler": scaler, "step": step, **nothing}
