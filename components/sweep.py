"""Find the serving settings of the selected candidate on a Triton without callers."""

from kfp import dsl

from components.images import DEPLOY


@dsl.component(base_image=DEPLOY, install_kfp_package=False)
def sweep(
    selection: str,
    serving: dict,  # type: ignore[type-arg]
    hardware: dict,  # type: ignore[type-arg]
    budget: dict,  # type: ignore[type-arg]
    store: str,
    dataset: dsl.Input[dsl.Dataset],
) -> str:
    """Find the serving settings of the selected candidate on a Triton without callers.

    Args:
        selection: Digest of the selection document.
        serving: The recipe's serving section.
        hardware: The recipe's hardware section; requests come as it says.
        budget: The recipe's budget; its p95_ms is the limit where serving names none.
        store: s3:// address of documents and models.
        dataset: Prepared data; its test split gives the requests.

    Returns:
        Digest of the sweep document.
    """
    from mlites.task import task

    with task():
        import tempfile
        from pathlib import Path

        from mlites.data.dataset import Dataset
        from mlites.models.card import read_card
        from mlites.recipe import Budget, Hardware, Serving
        from mlites.serving.sandbox import sandbox
        from mlites.serving.sweep import sweep_recipe
        from mlites.storage import Store

        with tempfile.TemporaryDirectory() as work, sandbox() as box:
            documents, folder = Store.open(store), Path(work) / "model"
            documents.get_folder(f"models/{documents.get_document(selection)['model']}", folder)
            data = Dataset.load(Path(dataset.path)).normalised_for(read_card(folder).preprocessing)
            return documents.put_document(
                sweep_recipe(
                    box.triton,
                    folder,
                    Serving.model_validate(serving),
                    Hardware.model_validate(hardware),
                    Budget.model_validate(budget),
                    data.arrays("test")[0],
                )
            )
