"""The card of a released cell, in the form of Hugging Face: what the network is, how good, and where it comes from.

Written from the record alone, so that the same results give the same card.
"""

import json
from pathlib import Path

from deeplab.config import Protocol
from pipeline.files import write_whole
from pipeline.markdown import code, plain
from pipeline.results.row import Row


def write_cards(rows: list[Row], folder: Path, title: str, protocol: Protocol) -> None:
    """Write `folder`/<cell>.md for each of `rows` that has a card, and README.md, which lists them; drop all others.

    `title` is the data set's, `protocol` the one that the rows were measured under.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = [row for row in rows if row.card]
    for row in listed:
        write_whole(folder / f"{row.name}.md", card(row, protocol))
    lines = [f"- [{row.name}]({row.name}.md): mIoU {value(row)}" for row in listed] or [
        "No cell has been measured yet."
    ]
    write_whole(folder / "README.md", f"# Model cards: {plain(title)}\n\n" + "\n".join(lines) + "\n")
    for old in {*folder.glob("*.md")} - {folder / f"{name}.md" for name in ("README", *(row.name for row in listed))}:
        old.unlink()


def value(row: Row) -> str:
    """The mIoU in percent with its interval."""
    low, high = row.mean_end("mIoU_low"), row.mean_end("mIoU_high")
    between = f" [{100 * low:.2f}, {100 * high:.2f}]" if low is not None and high is not None else ""
    return f"{100 * row.mean('mIoU'):.2f} %{between}"


def card(row: Row, protocol: Protocol) -> str:
    """The whole card of a measured cell."""
    return f"---\n{front_matter(row)}---\n\n{text(row, protocol)}"


def front_matter(row: Row) -> str:
    """What the hub reads, as YAML."""
    cell, images = row.cell, row.results[0].images
    metrics = {"mean_iou": "mIoU", "accuracy": "pixel_accuracy"}
    lines = [
        "license: other",
        "license_name: terms-of-the-training-data",
        "pipeline_tag: image-segmentation",
        "library_name: deeplab-grid",
        "tags: [semantic-segmentation, deeplabv3, pytorch]",
        f"datasets: [{json.dumps(cell.dataset)}]",
        "metrics: [mean_iou, accuracy]",
        "model-index:",
        f"  - name: {row.name}",
        "    results:",
        "      - task: {type: image-segmentation, name: Semantic segmentation}",
        "        dataset:",
        f"          name: {json.dumps(row.dataset.title)}",
        f"          type: {json.dumps(cell.dataset)}",
        f"          split: {json.dumps(cell.recipe.val_split)}",
        f"          args: {json.dumps({'images': images[cell.recipe.val_split]})}",
        "        metrics:",
    ]
    for kind, score in metrics.items():
        lines.append(f"          - {{type: {kind}, name: {score}, value: {row.mean(score):.6f}}}")
    return "".join(f"{line}\n" for line in lines)


def text(row: Row, protocol: Protocol) -> str:
    """What a person reads."""
    cell, first = row.cell, row.results[0]
    recipe, model, train = cell.recipe, cell.model, cell.train
    size = "x".join(map(str, recipe.crop))
    start = "ImageNet weights" if model.pretrained else "random weights"
    weights = "\n".join(
        f"| {result.seed} | {100 * result.scores['mIoU']:.2f} % | `{result.weights['sha256']}` | `{result.key}` |"
        for result in row.results
    )
    fingerprints = "\n".join(f"- {part}: `{value}`" for part, value in first.fingerprint.items())
    synthetic = row.dataset.format == "shapes"
    warning = "A demonstration on pictures made by code: it says nothing about DeepLabv3.\n\n" if synthetic else ""
    terms = "its pictures are made by code" if synthetic else "its terms bind whoever uses the network"
    scales = (
        f"scales {', '.join(f'{scale:g}' for scale in protocol.scales)}" if len(protocol.scales) > 1 else "one scale"
    )
    window = f"windows of {protocol.window[0]}x{protocol.window[1]}" if protocol.window else "whole images"
    return f"""# {row.name}

{warning}DeepLabv3 with {plain(model.backbone)} at output stride {model.output_stride} for semantic segmentation. \
Data set: {plain(row.dataset.title)}. mIoU {value(row)} on {first.images[recipe.val_split]} images of \
{code(recipe.val_split)}, {first.scores["classes_evaluated"]:g} classes. In brackets its 95 % interval over images; \
what another training seed would change is not in it.

## Use

```python
from deeplab import load_model

model = load_model("model.safetensors")  # or this folder, or {row.folder or "runs"}/weights/{first.weights["file"]}
labels = model.predict(image)  # (H, W, 3) uint8 RGB -> (H, W) indices into model.classes
```

## Training

From {start} on {first.images[recipe.train_split]} images of {code(recipe.train_split)}: {recipe.epochs} epochs of \
SGD at batch {recipe.batch_size}, learning rate {recipe.lr:g} ({recipe.policy}), crop {size}, {train.precision}. No \
license of its own comes with the network; of the data set, {terms}.

## Where the number comes from

Evaluated at {scales}, {"with" if protocol.flip else "without"} flip, {window} resized into the box \
{recipe.resize[0]} x {recipe.resize[1]}. The last checkpoint counts, not the best.

| seed | mIoU | SHA-256 of the weights | key of the run in MLflow |
| --: | --: | :-- | :-- |
{weights}

Fingerprints, which `python -m pipeline.verify.committed {row.name}` holds against today's settings, data and code:

{fingerprints}
"""
