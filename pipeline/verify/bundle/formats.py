"""What describes a bundle in formats of others: RO-Crate its files, Croissant the data sets, CycloneDX the packages."""

import json
import platform
import uuid
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path

import mlcroissant as croissant
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from rocrate.model.preview import Preview
from rocrate.rocrate import ROCrate

from pipeline.settings.schema import DatasetConfig
from pipeline.training.provenance import file_sha256, normal
from pipeline.verify.bundle.check import files_in


def packages(written: datetime) -> str:
    """The packages that are installed here, and Python, as a software bill of materials (CycloneDX 1.6)."""
    found = sorted({normal(package.name): package.version for package in distributions()}.items())
    parts = [
        Component(name=name, version=version, bom_ref=name, purl=PackageURL("pypi", name=name, version=version))
        for name, version in found
    ]
    python = Component(name="Python", version=platform.python_version(), type=ComponentType.PLATFORM, bom_ref="Python")
    number = uuid.uuid5(uuid.NAMESPACE_OID, f"{python.version} {found}")
    bom = Bom(components=[python, *parts], serial_number=number)
    bom.metadata.timestamp = written
    return f"{JsonV1Dot6(bom).output_as_string(indent=1)}\n"


def dataset(config: DatasetConfig, path: Path) -> str:
    """A data set as Croissant 1.0: its data card, which is `path`, the archives with an address, and its classes."""
    card = json.loads(path.read_bytes())
    files = [("card.json", f"../reports/data/{path.parent.name}/card.json", {"sha256": file_sha256(path)})]
    for archive in config.archives:  # Croissant has no place for one without an address, and none for SHA-1
        known = {kind: archive.checksums[kind] for kind in ("md5", "sha256") if kind in archive.checksums}
        files += [(archive.name, url, dict([known.popitem()])) for url in archive.urls[:1] if known]
    name = croissant.Field(id="classes/name", name="name", data_types=[croissant.DataType.TEXT])
    names = [{"classes/name": each["name"]} for each in card["classes"]]
    images = ", ".join(f"{about['images']} {split}" for split, about in card["splits"].items())
    found = croissant.Metadata(
        name=config.title,
        description=f"Images as prepared: {images}. SHA-256 of the manifest: {card['fingerprint']}. "
        "params.yaml names all archives.",
        distribution=[
            croissant.FileObject(
                id=name, name=name, content_url=url, encoding_formats=[f"application/{kind}"], **checksum
            )
            for name, url, checksum in files
            for kind in [{".json": "json", ".zip": "zip"}.get(Path(name).suffix, "x-tar")]
        ],
        record_sets=[croissant.RecordSet(id="classes", name="classes", fields=[name], data=names)],
    )
    return f"{json.dumps(found.to_json(), indent=1, ensure_ascii=False)}\n"


def crate(folder: Path, preview: str, about: dict[str, str]) -> None:
    """Make `folder` an RO-Crate of all files in it, with the page `preview` in HTML; `about` describes the whole."""
    found = ROCrate()
    for name, path in files_in(folder).items():
        found.add_file(path, name, properties={"name": name, "sha256": file_sha256(path)})
    for key, value in about.items():
        found.root_dataset[key] = value
    found.license = found.get("LICENSE") or "The project states no license."
    (folder / Preview.BASENAME).write_text(preview, encoding="utf-8")
    found.add(Preview(found, folder / Preview.BASENAME))
    found.metadata.write(folder)
