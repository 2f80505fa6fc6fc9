"""What an operation holds, which no tracer of Python's own memory sees."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestFloat(TorchDispatchMode):
    """The number of elements of the largest tensor of floats that any operation has made."""

    largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for value in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                self.largest = max(self.largest, value.untyped_storage().nbytes() // value.element_size())
        return made
