"""The arithmetic that the network computes in; losses and scores are always in fp32."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a precision, a key of DTYPES, on `device`; fp32 switches it off."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")
