"""Put the selected candidate into Triton."""

from kfp import dsl

from components.images import DEPLOY


@dsl.component(base_image=DEPLOY, install_kfp_package=False)
def deploy(
    selection: str,
    model: str,
    serving: dict,  # type: ignore[type-arg]
    threads: int,
    store: str,
    dataset: dsl.Input[dsl.Dataset],
) -> str:
    """Put the selected candidate into Triton and ask it the golden samples.

    Args:
        selection: Digest of the selection document.
        model: Name in Triton.
        serving: The recipe's serving section.
        threads: Of one instance's ONNX Runtime session, as measured.
        store: s3:// address of documents, models and Triton's repository.
        dataset: Prepared data; its test split gives the golden samples.

    Returns:
        Digest of the deployment document.
    """
    from mlites.task import task

    with task():
        import tempfile
        from pathlib import Path

        from mlites.data.dataset import Dataset
        from mlites.models.card import read_card
        from mlites.recipe import Serving
        from mlites.serving.deploy import deploy
        from mlites.storage import Store

        with tempfile.TemporaryDirectory() as work:
            documents = Store.open(store)
            digest = documents.get_document(selection)["model"]
            folder = Path(work) / "model"
            documents.get_folder(f"models/{digest}", folder)
            data = Dataset.load(Path(dataset.path)).normalised_for(read_card(folder).preprocessing)
            samples, _ = data.arrays("test")
            return documents.put_document(
                deploy(documents, folder, model, Serving.model_validate(serving), samples[:16])
            )
