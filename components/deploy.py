"""Make a release of the selected candidate and promote it to production."""

from kfp import dsl

from components.images import DEPLOY


@dsl.component(base_image=DEPLOY, install_kfp_package=False)
def deploy(
    selection: str,
    model: str,
    serving: dict,  # type: ignore[type-arg]
    threads: int,
    store: str,
    recipe: dict,  # type: ignore[type-arg]
    settings: str,
    dataset: dsl.Input[dsl.Dataset],
) -> str:
    """Make a release of the selected candidate and promote it to production.

    Args:
        selection: Digest of the selection document.
        model: Name in Triton.
        serving: The recipe's serving section.
        threads: Of one instance's ONNX Runtime session, as measured.
        store: s3:// address of documents, models, releases and Triton's repository.
        recipe: The whole recipe; the release names it.
        settings: Digest of the sweep document; empty to serve as the recipe says.
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
        from mlites.serving.deploy import deploy, release_facts
        from mlites.serving.release import GOLDEN_ROWS
        from mlites.serving.sweep import settle_on
        from mlites.storage import Store

        with tempfile.TemporaryDirectory() as work:
            documents = Store.open(store)
            selected = documents.get_document(selection)
            folder = Path(work) / "model"
            documents.get_folder(f"models/{selected['model']}", folder)
            data = Dataset.load(Path(dataset.path)).normalised_for(read_card(folder).preprocessing)
            samples, labels = data.arrays("test")
            swept = documents.get_document(settings) if settings else None
            options, intra = settle_on(swept, Serving.model_validate(serving), threads)
            return documents.put_document(
                deploy(
                    documents,
                    folder,
                    model,
                    options,
                    samples[:GOLDEN_ROWS],
                    labels=tuple(data.classes[label] for label in labels[:GOLDEN_ROWS]),
                    threads=intra,
                    say=lambda step, words: print(f"{step}: {words}", flush=True),
                    **release_facts(selected, recipe, data.digest),
                )
                | {"sweep": swept}
            )
