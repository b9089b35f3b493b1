"""Hardware profiles: shipped ones by name, own ones by path, and one line for what contradicts itself."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from mlites.errors import InputError
from mlites.recipe import Hardware, Recipe, load_recipe
from mlites.recipe.profiles import load_profile, shipped_profiles

RECIPE = """\
name: mine
data: {source: digits}
teacher: {architecture: {family: mlp}}
candidates: [{name: int8, passes: [{pass: quantize}]}]
"""


def _recipe(tmp_path: Path, hardware: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + hardware + "\n")
    return path


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_shipped_profile_is_right_and_bears_its_name(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name and profile.description
    assert Hardware.model_validate(profile.model_dump(mode="json", exclude_none=True)) == profile


def test_the_arm_class_says_what_it_only_imitates() -> None:
    assert "instruction sets, clock and caches are those of the machine that measures" in (
        load_profile("edge-arm-class").emulated
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"cores": 2, "threads": 4}, "threads must be at most the target's cores: 2, got 4"),
        ({"isa": ["avx2"], "without_isa": ["avx2"]}, "cannot both have and lack avx2"),
        ({"isa": ["avx512_vnni"], "without_isa": ["vnni"]}, "cannot both have and lack avx512_vnni"),
        ({"isa": ["vnni"], "without_isa": ["avx_vnni", "avx512_vnni"]}, "cannot both have and lack vnni"),
        ({"isa": ["avx2", "neon"]}, "isa must be of one kind of processor, got avx2, neon"),
        ({"isa": ["avx3"]}, "'avx3'"),
        ({"batches": [8, 8]}, "batches names a number twice: 8, 8"),
        ({"streams": [2, 2]}, "streams names a number twice: 2, 2"),
        ({"provider_options": {"device_id": 0}}, "provider_options belong to provider cuda"),
        ({"seconds": 5, "longest_seconds": 2}, "longest_seconds must be at least seconds: 5, got 2"),
        ({"precision": 0.001}, "greater than 0.005"),
        ({"arrival": {"pattern": "poisson"}}, "rate_per_second belongs to pattern poisson, which needs it"),
        ({"arrival": {"rate_per_second": 5}}, "rate_per_second belongs to pattern poisson"),
    ],
)
def test_what_contradicts_itself_is_refused(fields: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Hardware.model_validate(fields)
    assert told in str(caught.value)


def test_a_target_may_have_one_form_of_vnni_and_lack_the_other() -> None:
    assert Hardware(isa=("vnni",), without_isa=("avx_vnni",)).isa == ("vnni",)


def test_time_is_ten_times_the_least_unless_said_otherwise() -> None:
    assert Hardware().most_seconds == 20 and Hardware(seconds=1, longest_seconds=3).most_seconds == 3


def test_the_providers_options_come_as_text() -> None:
    options = {"device_id": 0, "arena": "kNextPowerOfTwo"}
    found = Hardware.model_validate({"provider": "cuda", "provider_options": options})
    assert found.provider_options == {"device_id": "0", "arena": "kNextPowerOfTwo"}
    with pytest.raises(ValidationError):
        Hardware.model_validate({"provider": "cuda", "provider_options": "device_id"})


@pytest.mark.parametrize("hardware", ["hardware: server-1core", "hardware: {profile: server-1core}"])
def test_a_recipe_names_a_shipped_profile(tmp_path: Path, hardware: str) -> None:
    recipe = load_recipe(_recipe(tmp_path, hardware))
    assert recipe.hardware == load_profile("server-1core")
    assert Recipe.model_validate_json(recipe.model_dump_json(by_alias=True)) == recipe


def test_a_recipe_changes_a_profile_and_so_do_overrides(tmp_path: Path) -> None:
    path = _recipe(tmp_path, "hardware: {profile: server-4core, threads: 2, seconds: 1}")
    assert load_recipe(path).hardware == load_profile("server-4core").model_copy(update={"threads": 2, "seconds": 1.0})
    path = _recipe(tmp_path, "hardware: server-4core")
    assert load_recipe(path, ["hardware.seconds=3"]).hardware.seconds == 3
    assert load_recipe(path, ["hardware=edge-arm-class"]).hardware == load_profile("edge-arm-class")
    both = load_recipe(path, ["hardware=edge-arm-class", "hardware.seconds=3"]).hardware
    assert both == load_profile("edge-arm-class").model_copy(update={"seconds": 3.0})


def test_a_profile_of_ones_own_lies_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "boards").mkdir()
    (tmp_path / "boards" / "mine.yaml").write_text("cores: 2\nthreads: 2\n")
    found = load_recipe(_recipe(tmp_path, "hardware: boards/mine.yaml")).hardware
    assert found == Hardware(name="mine", cores=2, threads=2)


@pytest.mark.parametrize(
    ("hardware", "told"),
    [
        (
            "hardware: raspberry",
            "hardware profile raspberry: no such file, and none of the shipped ones: edge-arm-class, gpu, server-1core",
        ),
        ("hardware: {profile: 3}", "hardware.profile must be a shipped profile's name or a path, got 3"),
        ("hardware: 7", "recipe.yaml:5: hardware: "),
        ("hardware: {profile: server-1core, threads: 4}", "recipe.yaml:5: hardware: threads must be at most"),
        ("hardware: wrong.yaml", "wrong.yaml:2: coers: unknown field"),
        ("hardware: list.yaml", "list.yaml: the profile must be a mapping with cores, threads"),
        ("hardware: broken.yaml", "broken.yaml:2: not valid YAML"),
    ],
)
def test_a_wrong_profile_is_one_line(tmp_path: Path, hardware: str, told: str) -> None:
    (tmp_path / "wrong.yaml").write_text("threads: 1\ncoers: 2\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("threads: 1\ncores: }\n")
    with pytest.raises(InputError) as caught:
        load_recipe(_recipe(tmp_path, hardware))
    assert told in str(caught.value) and "\n" not in str(caught.value)
