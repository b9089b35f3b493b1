"""Every command of manifests/README.md and docker/README.md exists, with the options and files that it names."""

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import RECIPES, cli

ROOT = Path(__file__).parents[2]
READMES = (ROOT / "manifests" / "README.md", ROOT / "docker" / "README.md")
OTHERS = {"podman", "docker", "helm", "debootstrap", "tar", "export"}  # need what the text beside them says


def commands() -> list[str]:
    """Every line of a fenced block, without its comment."""
    blocks = [block for path in READMES for block in re.findall(r"```\n(.*?)```", path.read_text(), re.DOTALL)]
    return [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines() if line.strip()]


COMMANDS = commands()


def test_there_are_commands_for_the_whole_way() -> None:
    for beginning in ("make kind", "make images", "make -s production", "mlites submit", "mlites schedule digits"):
        assert any(line.startswith(beginning) for line in COMMANDS)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_make_knows_the_target_and_its_variables(line: str) -> None:
    words = shlex.split(line.split(" > ")[0].replace("<", "").replace(">", ""))[1:]
    done = subprocess.run(["make", "-n", "-C", str(ROOT), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in words:
        if "=" in word:
            assert word.split("=", 1)[1] in done.stdout, f"{word} reaches nothing"


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("mlites ")])
def test_mlites_knows_the_command_and_its_options(line: str) -> None:
    words = shlex.split(line)[1:]
    done = CliRunner().invoke(cli, [*words, "--help"])  # reads all options before it helps
    assert done.exit_code == 0, done.output
    if words[0] in ("compile", "submit"):
        assert (RECIPES / f"{words[1]}.yaml").is_file()


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("kubectl ")])
def test_kubectl_gets_files_that_stand_here(line: str) -> None:
    words = shlex.split(line)
    for option, value in itertools.pairwise(words):
        if option in ("-k", "kustomize"):
            assert (ROOT / value / "kustomization.yaml").is_file()


def test_no_other_command_is_named_without_a_word_on_what_it_needs() -> None:
    known = {"make", "mlites", "kubectl", *OTHERS}
    assert {line.split()[0] for line in COMMANDS} <= known


def test_the_same_files_are_named_in_the_text() -> None:
    for path in READMES:
        for name in re.findall(r"`((?:base|overlays|local|kfp|requirements)/?[\w./-]*)`", path.read_text()):
            assert (path.parent / name).exists(), name
