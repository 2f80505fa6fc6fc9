"""The card of a released cell in the form of Hugging Face: what the network is, how good, and where it comes from.

A function of the record and the settings, so the same results give the same card.
"""

from pathlib import Path

from deeplab.config import Protocol
from pipeline.files import write_whole
from pipeline.markdown import code, plain
from pipeline.results.records import Row
from pipeline.results.splits import on_split
from pipeline.settings.params import Params

TEMPLATE = "model_card.md"
METRICS = {"mean_iou": "mIoU", "accuracy": "pixel_accuracy"}  # as the hub calls it -> a score


def write_cards(cards: dict[str, str], folder: Path) -> None:
    """Write `cards` as the only Markdown files of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in cards.items():
        write_whole(folder / name, text)
    for old in folder.glob("*.md"):
        if old.name not in cards:
            old.unlink()


def make_cards(dataset: str, rows: list[Row], params: Params) -> dict[str, str]:
    """File name -> content: a card for each of `rows` that has one, and README.md, which lists them."""
    listed = [row for row in rows if row.card]
    protocol = next(iter(params.protocols.values()))
    lines = [f"- [{row.name}]({row.name}.md): mIoU {value(row)}" for row in listed]
    text = "\n".join(lines or ["No cell has been measured yet."])
    contents = f"# Model cards: {plain(params.dataset(dataset).title)}\n\n{text}\n"
    return {"README.md": contents, **{f"{row.name}.md": card(row, protocol) for row in listed}}


def value(row: Row) -> str:
    """The mIoU in percent with its interval."""
    low, high = row.mean_end("mIoU_low"), row.mean_end("mIoU_high")
    between = f" [{100 * low:.2f}, {100 * high:.2f}]" if low is not None and high is not None else ""
    return f"{100 * row.mean('mIoU'):.2f} %{between}"


def card(row: Row, protocol: Protocol) -> str:
    """The card of a measured cell."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    recipe, first = row.cell.recipe, row.results[0]
    further = {split: measured for split in row.splits if (measured := on_split(row, split)).results}
    images = {split: measured.results[0].splits[split].images for split, measured in further.items()}
    own = recipe.splits if recipe.folds else recipe.val_split  # the training split itself may be a further one
    scores = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=row.cell.dataset,
            dataset_name=row.dataset.title,
            dataset_split=split,
            dataset_args={"images": images.get(split, first.images[recipe.eval_split])},
            metric_type=kind,
            metric_name=score,
            metric_value=round(measured.mean(score), 6),
        )
        for split, measured in {own: row, **further}.items()
        for kind, score in METRICS.items()
    ]
    data = ModelCardData(
        license="other",
        license_name="terms-of-the-training-data",
        pipeline_tag="image-segmentation",
        library_name="deeplab-grid",
        tags=["semantic-segmentation", "deeplabv3", "pytorch"],
        datasets=[row.cell.dataset],
        metrics=list(METRICS),
        model_name=row.name,
        eval_results=scores,
    )
    made = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name(TEMPLATE)),
        row=row,
        recipe=recipe,
        first=first,
        miou=value(row),
        further=[(split, value(measured), images[split]) for split, measured in further.items()],
        protocol=protocol,
        scales=", ".join(f"{scale:g}" for scale in protocol.scales),
        made_by_code=row.dataset.format == "shapes",
        plain=plain,
        code=code,
    )
    return f"{made.content.rstrip()}\n"
