"""Train the teacher, or take over the user's own."""

from kfp import dsl

from components.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def train_teacher(
    options: dict,  # type: ignore[type-arg]
    path: str,
    digest: str,
    seed: int,
    store: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train the teacher, or take over the user's own.

    Args:
        options: The recipe's teacher section.
        path: Local path or s3:// address of the user's model folder or weights, empty to train.
        digest: Digest of what stands at the path.
        seed: Of the initial weights and of the order of the rows.
        store: Where data and model cross to the workers of a TrainJob, where the teacher has some.
        dataset: Prepared data.

    Returns:
        model: Model folder of the teacher.
        metrics: Accuracy on the validation split.
    """
    from mlites.task import task

    with task() as checkpoint:
        import tempfile
        from pathlib import Path

        from components.artifacts import describe
        from mlites.compression.steps import train_teacher
        from mlites.data.dataset import Dataset
        from mlites.recipe import Teacher
        from mlites.storage import fetch

        with tempfile.TemporaryDirectory() as work:
            given = fetch(path, Path(work) / "teacher") if path else None
            teacher, data = Teacher.model_validate(options), Dataset.load(Path(dataset.path))
            card = train_teacher(teacher, data, seed, Path(model.path), given, checkpoint, store=store)
            describe(card, model, metrics)
