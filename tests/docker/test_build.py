"""docker/build.py: which program builds, with what, and what it says of the sizes."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docker" / "build.py"

HEAD = "| image | without its base | at most |\n| --- | --- | --- |\n"
ENGINE = """\
#!{python}
import sys
open({log!r}, "a").write(" ".join(sys.argv[1:]) + "\\n")
if "inspect" in sys.argv:
    print(200_000_000 if "debian" in sys.argv[-1] else 421_000_000)
"""


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """docker/build.py."""
    spec = importlib.util.spec_from_file_location("build", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is PATH, but for git."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def engine(folder: Path, name: str) -> None:
    """A program that notes how it is called and knows the size of every image."""
    path = folder / name
    path.write_text(ENGINE.format(python=sys.executable, log=str(folder / "calls")))
    path.chmod(0o755)


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """The script as `make` calls it."""
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


def test_the_first_engine_that_works_is_taken(build: ModuleType, engines: Path) -> None:
    engine(engines, "buildah")
    assert build.find_engine(None) == "buildah"
    engine(engines, "podman")
    assert build.find_engine(None) == "podman"
    (engines / "docker").write_text("#!/bin/sh\nexit 1\n")
    (engines / "docker").chmod(0o755)
    assert build.find_engine(None) == "podman", "docker has no engine"


def test_without_any_engine_it_says_what_to_install(engines: Path) -> None:
    done = run("deploy")
    assert done.returncode == 2
    assert done.stderr == (
        "error: cannot build images: docker is not installed; podman is not installed; buildah is not installed; "
        "install one of docker, podman, buildah\n"
    )


def test_sizes_are_printed_and_kept_without_the_base(engines: Path, tmp_path: Path) -> None:
    engine(engines, "podman")
    table = tmp_path / "sizes.md"
    kept = (
        "| image | without its base | at most |\n| --- | --- | --- |\n| train | 9 MB | 1600 MB |\n| deploy | 1 MB | |\n"
    )
    table.write_text(f"before\n<!-- sizes -->\n{kept}<!-- /sizes -->\nafter\n")
    done = run("deploy", "seaweedfs", "--base", "debian:x", "--sizes", str(table))
    assert done.returncode == 0, done.stderr
    assert "deploy: 221 MB without its base, at most 250 MB" in done.stdout
    assert table.read_text() == (
        f"before\n<!-- sizes -->\n{HEAD}| train | 9 MB | 1600 MB |\n"
        "| deploy | 221 MB | 250 MB |\n| seaweedfs | 221 MB |  |\n<!-- /sizes -->\nafter\n"
    )


def test_arguments_reach_the_build_and_secrets_are_mounted_not_given(engines: Path, tmp_path: Path) -> None:
    engine(engines, "podman")
    conf = tmp_path / "pip.conf"
    conf.write_text("[global]\nindex-url = https://user:word@packages.example/simple\n")
    index = "https://torch.example/cpu"
    options = ["--base", "debian:x", "--torch-index", index, "--pip-conf", str(conf), "--network", "host"]
    done = run("train", "deploy", *options, "--tag", "9.9", "--registry", "r.example/team/")
    assert done.returncode == 0, done.stderr
    first, second = [line for line in (engines / "calls").read_text().splitlines() if line.startswith("build")]
    assert f"--secret id=pip_conf,src={conf}" in first
    assert "word" not in first
    assert f"TORCH_INDEX={index}" in first and "TORCH_INDEX" not in second
    assert "BASE=debian:x" in first and "VERSION=9.9" in first and "REVISION=" in first and "CREATED=" in first
    assert "-t r.example/team/mlites/train:9.9" in first
    assert "--format docker" in first, "the other format has no HEALTHCHECK"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tag", "latest"], "--tag latest: give a version"),
        (["nothing"], "no such image: nothing; there are train, validate, deploy"),
        (["--pip-conf", "/nowhere"], "no such file: /nowhere"),
        (["deploy", "--engine", "podman"], "cannot build images: podman is not installed"),
    ],
)
def test_what_is_wrong_is_one_line(engines: Path, arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_failed_build_ends_it(engines: Path) -> None:
    engine(engines, "podman")
    (engines / "podman").write_text('#!/bin/sh\n[ "$1" = info ]\n')
    done = run("deploy")
    assert done.returncode == 2
    assert "mlites/deploy:" in done.stderr and "the build failed" in done.stderr


def test_without_arguments_the_bases_are_the_pinned_ones(engines: Path) -> None:
    engine(engines, "docker")
    assert run("triton", "validate").returncode == 0
    lines = [line for line in (engines / "calls").read_text().splitlines() if line.startswith("build")]
    assert "BASE=nvcr.io/nvidia/tritonserver:" in lines[0] and "@sha256:" in lines[0]
    assert "BASE=docker.io/library/python:" in lines[1] and "@sha256:" in lines[1]
