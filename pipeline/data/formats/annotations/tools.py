"""Readers of annotations as labelling tools write them: COCO, CVAT for images 1.1, LabelMe, YOLO segmentation.

pydantic checks the fields of JSON. Every mistake is a problem that names its place; nothing is left out without one.
"""

import base64
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deeplab.decode import open_picture, read_content
from deeplab.errors import DataError
from pipeline.data.find import find_pictures
from pipeline.data.formats.annotations.regions import (
    Export,
    Listed,
    Region,
    Size,
    add,
    counted,
    ellipse,
    runs_of,
    turned,
)

FORMS: Final = {
    "coco": "COCO instances with segmentations",
    "cvat": "CVAT for images 1.1",
    "labelme": "LabelMe",
    "yolo": "YOLO segmentation",
}

Model = TypeVar("Model", bound=BaseModel)
MOST: Final = 1 << 20  # pixels of a side
Positive = Annotated[int, Field(gt=0, le=MOST)]
Name = Annotated[str, Field(pattern=r"\S")]


class Form(BaseModel):
    """A JSON object whose other keys do not matter."""

    model_config = ConfigDict(allow_inf_nan=False)


class CocoImage(Form):
    id: int | str
    file_name: Name
    height: Positive
    width: Positive


class CocoCategory(Form):
    id: int | str
    name: Name
    supercategory: str | None = None


class CocoRegion(Form):
    image_id: int | str
    category_id: int | str
    segmentation: Any = None  # polygons, or {size, counts}
    iscrowd: bool = False


class Coco(Form):
    images: list[CocoImage]
    categories: list[CocoCategory]
    annotations: list[CocoRegion]


class LabelMeShape(Form):
    label: Name
    points: list[tuple[float, float]]
    shape_type: str = "polygon"
    mask: str | None = None  # a PNG in base64


class LabelMe(Form):
    image: Name = Field(alias="imagePath")
    height: Positive = Field(alias="imageHeight")
    width: Positive = Field(alias="imageWidth")
    shapes: list[LabelMeShape]


def read_coco(path: Path) -> Export:
    """A file of COCO instances. Images come in their order, and the regions of an image too."""
    export = Export()
    content = parse(Coco, path, export.problems)
    if content is None:
        return export
    categories = {each.id: tidy(each.name) for each in content.categories}
    images = {
        each.id: Listed(f"{path}: image {each.file_name!r}", each.file_name, (each.height, each.width), [])
        for each in content.images
    }
    if len(images) < len(content.images) or len(categories) < len(content.categories):
        export.problems.append(f"{path}: an id of images or categories occurs twice. Export it again")
    for number, each in enumerate(content.annotations):
        place = f"{path}: annotations.{number}"
        image = images.get(each.image_id)
        if image is None or each.category_id not in categories:
            key = "image_id" if image is None else "category_id"
            export.problems.append(f"{place}.{key}: got {getattr(each, key)!r}, which the file does not list")
            continue
        assert image.size
        region = Region(categories[each.category_id], is_crowd=each.iscrowd)
        if not isinstance(each.segmentation, dict):
            add(image, place, export.problems, partial(region._replace, polygons=each.segmentation))
        elif runs := counted(each.segmentation, image.size, place, export.problems):
            image.regions.append(region._replace(runs=runs))
    used = {each.category_id for each in content.annotations}
    groups = {each.supercategory for each in content.categories}  # of Roboflow, with a category of its own
    kept = [each for each in content.categories if each.id in used or each.name not in groups]
    export.images, export.names = list(images.values()), [categories[each.id] for each in kept]
    return export


def read_cvat(path: Path) -> Export:
    """A file of CVAT for images 1.1. The regions of an image come by their z_order."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    export = Export()
    try:
        root = fromstring(read_content(path))
        if root.tag != "annotations" or root.find("track") is not None:
            raise ValueError(f"a file of {'tracks' if root.find('track') is not None else root.tag}")
    except (ParseError, DefusedXmlException, DataError, ValueError) as error:
        export.problems.append(f"{path}: not annotations of {FORMS['cvat']} ({error}). Export them as that")
        return export
    export.names = [tidy(name.text or "") for name in root.iterfind("meta//labels/label/name")]
    for image in root.iterfind("image"):
        name = image.get("name", "")
        try:
            size = int(image.attrib["height"]), int(image.attrib["width"])
            if not 0 < min(size) <= max(size) <= MOST:
                raise ValueError
        except (KeyError, ValueError):
            export.problems.append(f"{path}: image {name!r} has no height and width")
            continue
        listed = Listed(f"{path}: image {name!r}", name, size, [])
        for number, each in enumerate((each for each in image if each.tag not in ("tag", "attribute")), start=1):
            add(listed, f"{listed.place}, {each.tag} {number}", export.problems, partial(cvat_region, each, size))
        export.images.append(listed)
    return export


def cvat_region(shape: Any, size: Size) -> Region:
    """The region of an element of CVAT. Raises KeyError without an attribute, ValueError without an area."""
    values = shape.attrib
    region = Region(tidy(values["label"]), order=int(values.get("z_order", 0)))
    turn = float(values.get("rotation", 0))
    if shape.tag == "mask":
        left, top, width, height = (int(values[key]) for key in ("left", "top", "width", "height"))
        runs = [int(run) for run in values["rle"].split(",") if run.strip()]
        if max(width, height) > max(size) or min(runs, default=0) < 0 or sum(runs) != width * height:
            raise ValueError(f"the runs cover {sum(runs)} pixels, expected {width}x{height}. Export it again")
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
        return region._replace(runs=runs_of(inside, left, top, size))
    if shape.tag == "polygon":
        flat = [float(number) for point in values["points"].split(";") for number in point.split(",")]
    elif shape.tag == "box":
        x1, y1, x2, y2 = (float(values[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
        flat = turned(corners, (x1 + x2) / 2, (y1 + y2) / 2, turn)
    elif shape.tag == "ellipse":
        x, y, rx, ry = (float(values[key]) for key in ("cx", "cy", "rx", "ry"))
        flat = turned(ellipse(x, y, rx, ry), x, y, turn)
    else:
        raise ValueError(f"{shape.tag!r} has no area. Draw a polygon or a mask instead, or delete it")
    return region._replace(polygons=[flat])


def read_labelme(folder: Path) -> Export:
    """All JSON files in `folder` and below; paths of images start at their file."""
    export = Export()
    for path in files_in(folder, ".json"):
        content = parse(LabelMe, path, export.problems)
        if content is None:
            continue
        size = content.height, content.width
        file = Path(path.parent.relative_to(folder), content.image.replace("\\", "/"))
        listed = Listed(str(path), file.as_posix(), size, [])
        for number, each in enumerate(content.shapes):
            add(listed, f"{path}: shapes.{number}", export.problems, partial(labelme_region, each, size))
        export.images.append(listed)
    return export


def labelme_region(shape: LabelMeShape, size: Size) -> Region:
    """The region of a shape. Raises ValueError for one without an area, or a broken one."""
    name, points = tidy(shape.label), np.array(shape.points).reshape(-1, 2)
    if shape.shape_type == "polygon":
        return Region(name, [points.ravel().tolist()])
    if shape.shape_type in ("rectangle", "circle", "mask") and len(points) < 2:
        raise ValueError(f"a {shape.shape_type} of {len(points)} points, expected 2. Delete it, or draw it again")
    if shape.shape_type == "rectangle":
        (x1, y1), (x2, y2) = points[:2].tolist()
        return Region(name, [[x1, y1, x2, y1, x2, y2, x1, y2]])
    if shape.shape_type == "circle":
        (x, y), radius = points[0], float(np.hypot(*(points[1] - points[0])))
        return Region(name, [ellipse(x, y, radius, radius).ravel().tolist()])
    if shape.shape_type == "mask":
        try:
            picture = open_picture(io.BytesIO(base64.b64decode(shape.mask or "", validate=True)))
            inside = np.asarray(picture.convert("L")) > 0
        except Exception as error:  # noqa: BLE001  Pillow raises nearly anything for a broken file
            raise ValueError(f"its mask is no PNG in base64 ({type(error).__name__}). Draw it again") from None
        return Region(name, runs=runs_of(inside, round(points[0, 0]), round(points[0, 1]), size))
    raise ValueError(f"{shape.shape_type!r} has no area. Draw a polygon instead, or delete it")


def read_yolo(folder: Path) -> Export:
    """All lists in `folder` and below, one per image, with lines `class x1 y1 x2 y2 ...` in shares of the image."""
    export = Export()
    for path in files_in(folder, ".txt"):
        if path.stem in ("classes", "labels", "train", "val", "test"):
            continue
        listed = Listed(str(path), path.relative_to(folder).with_suffix("").as_posix(), None, [])
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            export.problems.append(f"{path}: not a readable text in UTF-8. Export it again")
            continue
        for number, line in enumerate(lines, start=1):
            place, words = f"{path}:{number}", line.split()
            if not words:
                continue
            if len(words) == 5:
                export.problems.append(f"{place}: a box, expected a polygon. Export {FORMS['yolo']}, not detection")
            else:
                add(listed, place, export.problems, partial(Region, words[0], [words[1:]]))
        export.images.append(listed)
    return export


def parse(kind: type[Model], path: Path, problems: list[str]) -> Model | None:
    """The JSON in `path`, or None and what is wrong with it in `problems`."""
    try:
        return kind.model_validate_json(read_content(path).removeprefix(b"\xef\xbb\xbf"))
    except DataError as error:
        problems.append(str(error))
    except ValidationError as error:
        form = FORMS[kind.__name__.lower()]
        for each in error.errors(include_url=False, include_context=False):
            place = ".".join(str(part) for part in each["loc"] if part not in ("int", "str"))
            got = "" if each["type"] in ("json_invalid", "missing") else f"got {ascii(each['input'])[:40]}, "
            where = f"{path}: {place}" if place else f"{path}"
            problems.append(f"{where}: {got}{each['msg'][0].lower()}{each['msg'][1:]}. Is this an export of {form}?")
    return None


def files_in(folder: Path, ending: str) -> list[Path]:
    """The files below `folder` that end so, without hidden ones."""
    return [path for path in find_pictures(folder)[1] if path.suffix == ending]


def tidy(name: str) -> str:
    """The name of a class as a line of classes.txt has it."""
    return " ".join(name.split())


READERS: Final[dict[str, Callable[[Path], Export]]] = {
    "coco": read_coco,
    "cvat": read_cvat,
    "labelme": read_labelme,
    "yolo": read_yolo,
}
