"""Where stages run: on this machine, or through Ray or Slurm on others."""

from pipeline.runner.engine import Engine, EngineFactory, Order
from pipeline.runner.local import Workers, find_slots
from pipeline.settings.stage_names import kind_and_name


def here(order: Order) -> Engine:
    """Processes of this machine. Only training and evaluation need a GPU."""
    computes = any(kind_and_name(name)[0] in ("train", "evaluate") for name in order.stages)
    device = order.params.device if computes else "cpu"
    slots = find_slots(order.count, device, order.threads, order.params.gpus_per_cell)
    return Workers(slots, order.logs, lock=order.lock)


def ray(order: Order) -> Engine:
    """Tasks of a running Ray, or of one that starts here."""
    from pipeline.cluster.cells import Remote
    from pipeline.cluster.ray import RayCells

    return Remote(order, RayCells(order))


def slurm(order: Order) -> Engine:
    """Jobs of Slurm, one per cell."""
    from pipeline.cluster.cells import Remote
    from pipeline.cluster.slurm import SlurmCells

    return Remote(order, SlurmCells(order))


ENGINES: dict[str, EngineFactory] = {"here": here, "ray": ray, "slurm": slurm}
