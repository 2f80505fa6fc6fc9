"""mmsegmentation: configs/deeplabv3/deeplabv3_r18-d8, with the changes that demo/MMSegmentation_Tutorial.ipynb makes
for 572 small images: batch 8, crop 256x256, the images' own size times 0.5 to 2, BN for SyncBN.

The poly schedule (power 0.9, lr 0.01 to 1e-4) takes the share of the time for that of the iterations. mmcv-lite has no
compiled operators, which are imported and not used here: a stand-in takes their place.
"""

import sys
import types
from pathlib import Path

operators = types.ModuleType("mmcv.ops")
operators.__getattr__ = lambda _: None
sys.modules["mmcv.ops"] = operators

import mmseg  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmseg.apis import inference_model  # noqa: E402

from benchmarks.race.job import CLASSES, Clock, Job, main  # noqa: E402

CONFIG = ".mim/configs/deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py"
SIZE, CROP = (480, 360), (256, 256)
TEST = [{"type": "LoadImageFromFile"}, {"type": "Resize", "scale": SIZE, "keep_ratio": True}, {"type": "PackSegInputs"}]
TRAIN = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations"},
    {"type": "RandomResize", "scale": SIZE, "ratio_range": (0.5, 2.0), "keep_ratio": True},
    {"type": "RandomCrop", "crop_size": CROP, "cat_max_ratio": 0.75},
    {"type": "RandomFlip", "prob": 0.5},
    {"type": "PhotoMetricDistortion"},
    {"type": "PackSegInputs"},
]


class Minutes(Hook):
    """Sets the learning rate and ends the training by the clock."""

    def __init__(self, minutes: float) -> None:
        self.minutes, self.images = minutes, 0

    def before_train(self, _):
        self.clock = Clock(self.minutes)

    def before_train_iter(self, runner, *_, **__):
        for group in runner.optim_wrapper.param_groups:
            group["lr"] = 1e-4 + (0.01 - 1e-4) * (1 - self.clock.share()) ** 0.9

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):  # noqa: ARG002
        self.images += len(data_batch["inputs"])
        runner.train_loop.stop_training = self.clock.share() == 1


def run(job: Job):
    config = Config.fromfile(Path(mmseg.__path__[0]) / CONFIG)
    model = config.model
    model.pretrained, model.data_preprocessor.size = None, CROP
    model.decode_head.num_classes = model.auxiliary_head.num_classes = len(CLASSES)
    for part in (model.backbone, model.decode_head, model.auxiliary_head):
        part.norm_cfg = {"type": "BN", "requires_grad": True}
    folders = {"img_path": str(job.data / "images/train"), "seg_map_path": str(job.data / "masks/train")}
    data = {"type": "BaseSegDataset", "metainfo": {"classes": CLASSES}, "data_prefix": folders, "pipeline": TRAIN}
    sampler = {"type": "InfiniteSampler", "shuffle": True}
    config.train_dataloader = {"batch_size": 8, "num_workers": 0, "sampler": sampler, "dataset": data}
    config.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 10**9, "val_interval": 10**9}
    for name in ("cfg", "dataloader", "evaluator"):
        config[f"val_{name}"] = config[f"test_{name}"] = None
    config.param_scheduler = None
    config.test_pipeline, config.work_dir = TEST, str(job.out / "work")
    runner, minutes = Runner.from_cfg(config), Minutes(job.minutes)
    runner.register_hook(minutes)
    network = runner.train().eval()
    network.cfg = config
    for path in job.images("val"):
        job.write(path, inference_model(network, str(path)).pred_sem_seg.data[0])
    trained = {"images": minutes.images, "seconds": minutes.clock.seconds}
    return {"network": "deeplabv3_r18-d8", "given": "480x360 times 0.5 to 2, crop 256x256, batch 8", **trained}


if __name__ == "__main__":
    main("mmsegmentation", run)
