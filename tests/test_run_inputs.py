"""What a run starts from is told by content, and an earlier verdict on the same is found."""

from typing import Any

import pytest

from mlites.errors import InputError
from mlites.recipe import Recipe
from mlites.run_inputs import RunInputs, look_up, remember
from mlites.storage import MissingObject, Store

RECIPE: dict[str, Any] = {
    "name": "parts",
    "data": {"source": "npz", "path": "s3://data/parts.npz"},
    "teacher": {"architecture": {"family": "mlp"}},
    "candidates": [{"name": "int8", "passes": [{"pass": "quantize"}]}],
}
DECIDES = {"seed": 0}


@pytest.fixture
def here(store: Store, seaweedfs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in seaweedfs.items():
        monkeypatch.setenv(name, value)
    store.put("parts.npz", b"rows")
    store.put("teacher/model.json", b"{}")
    return store


def _look(store: Store, decides: dict[str, Any] = DECIDES, **changed: Any) -> RunInputs:
    recipe = Recipe.model_validate(RECIPE | changed)
    return look_up(store, recipe, f"{store.uri}/parts.npz", "", f"{store.uri}/teacher", decides)


def test_the_same_inputs_are_known_again_once_a_run_came_to_a_verdict(here: Store) -> None:
    first = _look(here)
    assert first.same_as is None and _look(here) == first
    remember(here, "parts", first.digest, "parts-1")
    assert _look(here).same_as == "parts-1"
    assert _look(here, cluster={"parallelism": 3}).same_as == "parts-1"  # how it runs decides nothing


@pytest.mark.parametrize("change", ["data", "teacher", "recipe", "seed"])
def test_whatever_decides_the_result_makes_the_inputs_new(here: Store, change: str) -> None:
    remember(here, "parts", _look(here).digest, "parts-1")
    if change in ("data", "teacher"):
        here.put("parts.npz" if change == "data" else "teacher/model.json", b"others")
    changed = {"budget": {"speedup": 3}} if change == "recipe" else {}
    assert _look(here, {"seed": 1} if change == "seed" else DECIDES, **changed).same_as is None


def test_a_reference_counts_as_data(here: Store) -> None:
    here.put("profile.json", b"{}")
    recipe = Recipe.model_validate(RECIPE)
    addresses = f"{here.uri}/parts.npz", f"{here.uri}/profile.json", ""
    first = look_up(here, recipe, *addresses, DECIDES)
    here.put("profile.json", b"[]")
    assert look_up(here, recipe, *addresses, DECIDES).data != first.data


def test_built_in_data_has_a_digest_too(here: Store) -> None:
    recipe = Recipe.model_validate(RECIPE | {"data": {"source": "digits"}})
    assert len(look_up(here, recipe, "", "", "", DECIDES).data) == 64


def test_missing_objects_and_local_files_are_told(here: Store) -> None:
    recipe = Recipe.model_validate(RECIPE)
    with pytest.raises(MissingObject, match=r"none\.npz does not exist"):
        look_up(here, recipe, f"{here.uri}/none.npz", "", "", DECIDES)
    with pytest.raises(InputError, match=r"data_path is parts\.npz, which a cluster cannot see"):
        look_up(here, recipe, "parts.npz", "", "", DECIDES)
