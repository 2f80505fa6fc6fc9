"""Measure what a cell costs to use on this machine. Needs the prepared data and no weights: all cost the same."""

import resource
import time
from dataclasses import replace
from math import prod
from statistics import median

from pipeline.results.costs import inputs, write_cost
from pipeline.settings.params import load_params
from pipeline.settings.places import Places

LEAST, MOST, SECONDS = 3, 50, 5.0  # repetitions: those of SECONDS, but LEAST to MOST of them


def run(name: str, device_name: str | None = None, places: Places = Places()) -> str:
    """Measure the cell `name` with one image of the validation split's median size, from pixels to labels.

    Writes its line of costs.csv and returns a line about it. On a CPU, memory is that of this whole process. Raises
    ParamsError for an unknown cell or device, DataError where the data is not prepared.
    """
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from deeplab.inference import predict
    from deeplab.model import DeepLabV3
    from deeplab.store import Store
    from deeplab.transforms import fitted_size
    from pipeline.training.device import select_device, set_arithmetic
    from pipeline.training.provenance import processor

    params = load_params(places.params)
    cell, protocol = params.cell(name), next(iter(params.protocols.values()))
    store, device = Store(places.store(cell.dataset)), select_device(device_name or params.runtime.device)
    sizes = [(record.height, record.width) for record in store.split(cell.recipe.eval_split).records]
    height, width = sorted(sizes, key=prod)[len(sizes) // 2]
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    set_arithmetic(cell.train)
    torch.manual_seed(0)
    stride = protocol.output_stride or cell.model.output_stride
    model = replace(cell.model, pretrained=False, auxiliary_channels=0, output_stride=stride)
    network = DeepLabV3(model, len(store.classes)).eval().to(device).to(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter:
        predict(network, image, cell.inference, protocol, device)
    times: list[float] = []
    while len(times) < LEAST or (len(times) < MOST and sum(times) < SECONDS):
        start = time.perf_counter()
        predict(network, image, cell.inference, protocol, device)  # the labels are read back: the device has finished
        times.append(time.perf_counter() - start)
    cuda = device.type == "cuda"
    cost = {
        "cell": name,
        "parameters": sum(each.numel() for each in network.parameters()),
        "macs": counter.get_total_flops() // 2,
        "flops": counter.get_total_flops(),
        "latency": f"{median(times):.3g}",
        "memory": torch.cuda.max_memory_allocated(device)
        if cuda
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "size": "x".join(map(str, fitted_size(height, width, cell.recipe.resize, 1.0))),
        "device": torch.cuda.get_device_name(device) if cuda else f"{processor()}, threads: {cell.train.threads}",
        "torch": torch.__version__,
        "inputs": inputs(name, params, places),
        "data": store.fingerprint,
    }
    write_cost(cost, places.costs(cell.dataset))
    return (
        f"{name}: {cost['parameters'] / 1e6:.2f} M parameters; {cost['flops'] / 1e9:.2f} GFLOPs at {cost['size']}; "
        f"{1e3 * median(times):.1f} ms and {cost['memory'] / 1e6:.0f} MB on {cost['device']}"
    )
