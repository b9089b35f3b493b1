"""Read, check and split the labelled data."""

from kfp import dsl

from components.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def prepare_data(
    options: dict,  # type: ignore[type-arg]
    task_kind: str,
    path: str,
    reference: str,
    digest: str,
    seed: int,
    dataset: dsl.Output[dsl.Dataset],
    quality: dsl.Output[dsl.HTML],
) -> None:
    """Read, check and split the labelled data.

    Args:
        options: The recipe's data section.
        task_kind: The recipe's task, empty to go by the source.
        path: Local path or s3:// address, empty for built-in data.
        reference: profile.json of an earlier dataset, empty for none.
        digest: Digest of the source; decides with the other inputs whether an earlier result is reused.
        seed: Of the split.

    Returns:
        dataset: Folder with one safetensors file a split, its description and its profile.
        quality: The checks, as a page.
    """
    from mlites.task import task, tell

    with task():
        import tempfile
        from pathlib import Path

        from mlites.data.prepare import prepare
        from mlites.files import canonical_json, write_atomically
        from mlites.recipe import Data
        from mlites.storage import fetch

        with tempfile.TemporaryDirectory() as work:
            source = fetch(path, Path(work) / "source") if path else None
            earlier = fetch(reference, Path(work) / "reference") if reference else None
            data = Data.model_validate(options | {"path": path or None, "reference": reference or None})
            document = prepare(data, task_kind or None, seed, source, Path(dataset.path), Path(quality.path), earlier)
            write_atomically(Path(dataset.path) / "document.json", canonical_json(document))
            tell(data=document)
            dataset.metadata["digest"] = document["digest"]
