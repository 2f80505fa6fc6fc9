"""What is different about the checkpoints of a toolbox."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Of the published networks, and in no tensor: a checkpoint of another network would be accepted and give wrong numbers.
SETTINGS = {
    "aspp_rates": (6, 12, 18),  # at output stride 16
    "multi_grid": (1, 1, 1),
    "mean": (123.675, 116.28, 103.53),
    "std": (58.395, 57.12, 57.375),
}


@dataclass(frozen=True, kw_only=True)
class Toolbox:
    """The form of a toolbox's checkpoints of DeepLabv3."""

    state: str | None  # the key of the file's dictionary that holds the tensors; None: the file is that dictionary
    keys: Mapping[str, str]  # their prefix of names -> ours; the longest one counts
    image_first: bool = False  # the image-level features come first, not last, into the projection
    output_strides: tuple[int, ...] = (8, 16)

    def settings(self) -> dict[str, tuple[Any, ...]]:
        """The values that each setting of the network may have, where no tensor shows it."""
        return {"output_stride": self.output_strides, **{key: (value,) for key, value in SETTINGS.items()}}

    def rename(self, name: str) -> str | None:
        """Our name of a tensor; None for one that our network has no place for."""
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            if (ours := self.keys.get(".".join(parts[:length]))) is not None:
                return ".".join([ours, *parts[length:]])
        return None
