"""Take the seeds of a cell that are trained already, so that another seed trains alone.

DVC deletes the outs of a stage before it runs it. dvc.lock still names them, and DVC's cache, or its remote, has them.
"""

import hashlib
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from pipeline.settings.places import Places
from pipeline.settings.yaml import look_up, read_yaml, stage_in
from pipeline.training.facts import CellFacts, Facts, Inputs
from pipeline.training.publish import write_json


def take_trained(
    name: str, seeds: Collection[int], inputs: Inputs, places: Places, folder_of: Callable[[int], Path]
) -> None:
    """Put each of `seeds` that the last training of the cell `name` had into its folder, as training leaves it.

    Only with the same settings, data and code, and unchanged weights, and only after a change of params.yaml, such as
    another list of seeds: without one, somebody wants them trained again.
    """
    if has_same_params(name, places):  # quick, and the usual case
        return
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(places.root)) as repo:
            files = DVCFileSystem(repo)
            run = "/" / places.run(name).resolve().relative_to(Path(repo.root_dir).resolve())  # / is the repository
            trained = CellFacts.model_validate_json(files.read_bytes(str(run / "run.json"))).seeds
            history = files.read_text(str(run / "history.csv")).splitlines()
            for seed in seeds:
                facts, folder = trained.get(str(seed)), folder_of(seed)
                if facts and facts.weights and not folder.exists() and is_of(facts, inputs):
                    hashes = {spot.file(seed): spot.sha256 for spot in facts.spots}
                    hashes[facts.weights.file] = facts.weights.sha256
                    contents = {file: files.read_bytes(str(run / "weights" / file)) for file in hashes}
                    if all(hashlib.sha256(contents[file]).hexdigest() == sha256 for file, sha256 in hashes.items()):
                        write_seed(folder, facts, contents, history)
                        print(f"{name} seed {seed}: trained before, its weights are taken", flush=True)
    except (OSError, ValueError, DvcException):  # no such result, or not at hand: it is trained
        return


def has_same_params(name: str, places: Places) -> bool:
    """Whether the training of `name` in dvc.lock had the current params.yaml; also true of one that is not there.

    dvc.yaml names settings of all rows. A change of them makes a training stale whose cell has the same settings.
    """
    text = places.lock.read_text(encoding="utf-8") if places.lock.exists() else ""
    before = stage_in(text, f"train@{name}").get("params", {}).get(places.params.name, {})
    now = read_yaml(places.params) if before else {}
    return all(look_up(now, key) == value for key, value in before.items())


def is_of(facts: Facts, inputs: Inputs) -> bool:
    """Whether a training had these inputs."""
    same = facts.fingerprint == {"cell": inputs.cell.fingerprint, "data": inputs.data, "code": inputs.code}
    return same and (facts.init.sha256 if facts.init else "") == inputs.start(facts.seed)


def write_seed(folder: Path, facts: Facts, contents: dict[str, bytes], history: list[str]) -> None:
    """Undo `publish` for one seed. `folder` appears in one step: what a kill leaves would be trained again."""
    from deeplab.checkpoint import write_durably
    from deeplab.spots import state_file

    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed here
    try:
        (part / "spots").mkdir(parents=True)
        head, *rows = (line.partition(",") for line in history)
        own = [head[2], *(row for seed, _, row in rows if seed == str(facts.seed))]
        write_durably(part / "history.csv", ("\n".join(own) + "\n").encode())
        for spot in facts.spots:
            write_durably(state_file(part / "spots", spot.start), contents.pop(spot.file(facts.seed)))
        (weights,) = contents.values()
        write_durably(part / "weights.safetensors", weights)
        write_json(part / "facts.json", facts.plain())
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
