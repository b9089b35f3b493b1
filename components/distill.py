"""Train a student to answer as its teacher does."""

from kfp import dsl

from components.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def distill(
    options: dict,  # type: ignore[type-arg]
    seed: int,
    parent: dsl.Input[dsl.Model],
    teacher: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train a student to answer as its teacher does.

    Args:
        options: The recipe's distill pass.
        seed: Of new weights and of the order of the rows.
        parent: Model folder of the pass before: the teacher of a new student, or itself the student.
        teacher: Model folder of the recipe's teacher.
        dataset: Prepared data.

    Returns:
        model: Model folder.
        metrics: Accuracy on the validation split.
    """
    from components.artifacts import candidate_step, describe

    with candidate_step(model, metrics) as checkpoint:
        from pathlib import Path

        from mlites.compression.steps import distill
        from mlites.data.dataset import Dataset
        from mlites.recipe import Distill

        settings, data = Distill.model_validate(options), Dataset.load(Path(dataset.path))
        folders = Path(parent.path), Path(teacher.path)
        card = distill(*folders, data, settings, seed, Path(model.path), checkpoint)
        describe(card, model, metrics)
