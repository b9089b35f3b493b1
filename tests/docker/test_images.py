"""The Dockerfiles keep what docker/README.md promises; that they build is shown by tests/benchmarks/containers.py."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
STEPS = ("train", "validate", "deploy")
ALL = (*STEPS, "triton", "seaweedfs")
LABELS = {"title", "description", "version", "revision", "created", "base.name"}


def instructions(kind: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (DOCKER / f"{kind}.Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def final_stage(kind: str) -> list[tuple[str, str]]:
    """The instructions of what is shipped."""
    found = instructions(kind)
    last = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


every_image = pytest.mark.parametrize("kind", ALL)
every_step = pytest.mark.parametrize("kind", STEPS)


@every_image
def test_bases_come_by_argument_and_their_pins_are_digests(kind: str) -> None:
    found = instructions(kind)
    stages = {line.split(" AS ")[1] for name, line in found if name == "FROM" and " AS " in line}
    assert {line.split(" AS ")[0] for name, line in found if name == "FROM"} <= {"${BASE}", *stages}
    assert found[0] == ("ARG", "BASE")
    pins = [line for line in (DOCKER / "pins.env").read_text().splitlines() if line and not line.startswith("#")]
    assert len(pins) == 2
    assert all(re.fullmatch(r"[A-Z]+_BASE=[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", line) for line in pins)


@every_image
def test_runs_as_a_fixed_user_that_is_not_root(kind: str) -> None:
    users = [line for name, line in final_stage(kind) if name == "USER"]
    assert users == ["1000:1000"]
    names = [name for name, _ in final_stage(kind)]
    assert "RUN" not in names[names.index("USER") :]


@every_image
def test_writes_below_tmp_alone(kind: str) -> None:
    settings = " ".join(line for name, line in final_stage(kind) if name == "ENV")
    assert "HOME=/tmp" in settings
    assert ("WORKDIR", "/tmp") in final_stage(kind)


@every_image
def test_says_what_it_is(kind: str) -> None:
    label = next(line for name, line in final_stage(kind) if name == "LABEL")
    assert set(re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", label)) == LABELS


@every_image
def test_takes_no_secret_by_argument_or_variable_and_nothing_from_the_net_unpinned(kind: str) -> None:
    for name, line in instructions(kind):
        if name in ("ARG", "ENV"):
            assert not re.search(r"(?i)secret|password|token|credential|_key", line), line
        assert name != "ADD"
        assert "curl" not in line and "wget" not in line
        if "pip install" in line or "pip wheel" in line:
            assert "-c constraints.txt" in line or "--no-index" in line or "--no-deps /package/" in line, line
        if "apt-get install" in line:
            assert "--no-install-recommends" in line and "rm -rf /var/lib/apt/lists" in line


@every_step
def test_ships_no_tool_that_builds(kind: str) -> None:
    final = " ".join(line for _, line in final_stage(kind))
    assert "pip" not in final and "apt-get" not in final
    assert [line for name, line in final_stage(kind) if name == "COPY"] == ["--from=install /opt/mlites /opt/mlites"]
    assert any("venv --without-pip /opt/mlites" in line for _, line in instructions(kind))


@every_step
def test_ships_compiled_code_and_a_bill_of_materials(kind: str) -> None:
    text = " ".join(line for _, line in instructions(kind))
    assert "compileall" in text and "--invalidation-mode unchecked-hash" in text
    assert "cyclonedx-py environment" in text and "/opt/mlites/sbom.cdx.json" in text


def test_wheels_are_made_once_for_all_steps() -> None:
    def first_stages(kind: str) -> list[tuple[str, str]]:
        found = instructions(kind)
        return found[: found.index(("FROM", "wheels AS install"))]

    assert first_stages("train") == first_stages("validate") == first_stages("deploy")
    assert "torch" not in str(first_stages("train"))


def test_servers_tell_whether_they_are_well_and_steps_have_nothing_to_tell() -> None:
    has_check = {kind: any(name == "HEALTHCHECK" for name, _ in final_stage(kind)) for kind in ALL}
    assert has_check == {"train": False, "validate": False, "deploy": False, "triton": True, "seaweedfs": True}


def test_triton_holds_settings_and_no_model() -> None:
    copied = [line for name, line in instructions("triton") if name == "COPY"]
    assert copied == ["--chmod=755 docker/triton.sh /opt/mlites/triton.sh"]


def test_the_context_holds_nothing_else_than_what_is_copied() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {line[1:] for line in rules if line.startswith("!")}
    copied: set[str] = set()
    for kind in ALL:
        for name, line in instructions(kind):
            if name == "COPY" and "--from" not in line:
                copied |= {word.rstrip("/") for word in line.split()[:-1] if not word.startswith("--")}
    assert allowed == copied
    assert all((ROOT / path).exists() for path in allowed)


def test_images_have_the_names_that_pipelines_and_manifests_use() -> None:
    from components import images
    from mlites import __version__

    assert [f"mlites/{kind}:{__version__}" for kind in STEPS] == [images.TRAIN, images.VALIDATE, images.DEPLOY]
    for path in (ROOT / "manifests").rglob("kustomization.yaml"):
        for one in yaml.safe_load(path.read_text()).get("images", []):
            assert one["name"].removeprefix("mlites/") in ALL
            assert one["newTag"] == __version__, path
