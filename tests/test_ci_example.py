"""The workflow that comments on pull requests is well formed, and its commands exist."""

import re
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.cli import grid

ROOT = Path(__file__).parents[1]
WORKFLOW = YAML(typ="safe").load((ROOT / ".github/workflows/report.yml").read_text(encoding="utf-8"))
STEPS = WORKFLOW["jobs"]["report"]["steps"]
SCRIPTS = [step["run"] for step in STEPS if "run" in step]


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_is_one_that_bash_understands(script):
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_text_of_a_pull_request_is_pasted_into_a_script():
    """A branch may be called `;rm -rf /`: GitHub pastes before the shell reads."""
    assert not [script for script in SCRIPTS if "${{" in script]


def test_the_commands_and_targets_exist():
    text = "\n".join(SCRIPTS)
    verbs = re.findall(r"^grid (\S+)", text, re.M)
    assert verbs
    assert set(verbs) <= grid.commands.keys()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\S+)", text, re.M):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.M)
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert {target.split("@")[0] for target in WORKFLOW["env"]["TARGETS"].split()} <= stages.keys()


def test_the_token_may_write_comments_and_nothing_else():
    assert WORKFLOW["permissions"] == {"contents": "read", "pull-requests": "write"}
