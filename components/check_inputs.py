"""Look at what the inputs hold now, before anything is done."""

from typing import NamedTuple

from kfp import dsl

from components.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def check_inputs(
    recipe: dict,  # type: ignore[type-arg]
    data_path: str,
    reference_path: str,
    teacher_path: str,
    seed: int,
    budget: dict,  # type: ignore[type-arg]
    only_if_changed: bool,
    store: str,
) -> NamedTuple("Outputs", [("Output", bool), ("data_digest", str), ("teacher_digest", str)]):  # type: ignore[valid-type]
    """Look at what the inputs hold now, and whether there is anything to do.

    Args:
        recipe: The whole recipe.
        data_path: s3:// address, empty for built-in data.
        reference_path: s3:// address of an earlier profile.json, empty for none.
        teacher_path: s3:// address of the user's model folder or weights, empty to train.
        seed: Of the run.
        budget: The recipe's budget section.
        only_if_changed: Whether to end here if the last verdict was on the same inputs.
        store: s3:// address of the documents.

    Returns:
        Whether to go on; digest of the data; digest of the user's model.
    """
    from mlites.task import task, tell

    with task():
        import os

        from mlites.recipe import Recipe
        from mlites.run_inputs import look_up
        from mlites.storage import Store

        decides = {"seed": seed, "budget": budget, "code": os.environ.get("MLITES_CODE")}
        addresses = data_path, reference_path, teacher_path
        found = look_up(Store.open(store), Recipe.model_validate(recipe), *addresses, decides)
        same_as = found.same_as if only_if_changed else None
        tell(inputs=found.digest, same_as=same_as)
        print(f"nothing to do: {same_as} came to a verdict on the same inputs" if same_as else "inputs looked up")
        return (same_as is None, found.data, found.teacher)
