"""What params.yaml says about a data set of the format `folder`: docs/bring-your-own-images.md explains each option."""

import re
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from deeplab.config import STRICT

Label = Annotated[int, Field(ge=0, le=255)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FolderOptions:
    """Where images and masks lie below the raw folder, and what the masks mean. `{split}` stands for a split's name."""

    images: str | None = None  # the folder of a split's images, or the pattern of their files, with {name}
    masks: str | None = None  # the same for the masks; an image and a mask with the same {name} are a pair
    pairs: str | None = None  # instead of the two above: a file with a line `image mask` for each pair
    classes: str  # a file with a line `label name` or `label name red green blue` for each class
    masks_are: Literal["labels", "colors"] = "labels"
    ignore: tuple[Label, ...] = ()  # labels that are neither trained on nor counted
    map: dict[Label, Label] = Field(default_factory=dict)  # a label -> the label that it counts as

    def __post_init__(self) -> None:
        if self.pairs is None and (self.images is None or self.masks is None):
            raise ValueError("images: expected images and masks, or pairs instead of both")
        if self.pairs is not None and (self.images is not None or self.masks is not None):
            raise ValueError("pairs: expected without images and masks")
        for key, words in (("images", ["split", "name"]), ("masks", ["split", "name"]), ("pairs", ["split"])):
            pattern = getattr(self, key) or ""
            odd = set(re.findall(r"\{(.*?)\}", pattern)) - set(words)
            if odd or pattern.count("{name}") > 1 or "{name}" in pattern.rpartition("/")[0]:
                known = " and ".join(f"{{{word}}}" for word in words)
                raise ValueError(f"{key}: got {pattern!r}, expected only {known} in braces, {{name}} behind the last /")
        for source, target in self.map.items():
            if source in self.ignore:
                raise ValueError(f"map: label {source} stands in ignore too")
            if target in self.map:
                raise ValueError(f"map: label {source} counts as {target}, which counts as {self.map[target]} itself")
