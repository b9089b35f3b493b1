"""Write the run's report and summary."""

from kfp import dsl

from components.images import DEPLOY


@dsl.component(base_image=DEPLOY, install_kfp_package=False)
def report(
    run: str,
    job: str,
    recipe: dict,  # type: ignore[type-arg]
    selection: str,
    deployment: str,
    store: str,
    dataset: dsl.Input[dsl.Dataset],
    quality: dsl.Input[dsl.HTML],
    page: dsl.Output[dsl.HTML],
    lines: dsl.Output[dsl.Markdown],
    winner: dsl.Output[dsl.ClassificationMetrics],
) -> None:
    """Write the run's report and summary, and publish them under runs/.

    Args:
        run: Name of the run; empty to take the job's.
        job: Name that Kubeflow gave the run.
        recipe: The whole recipe.
        selection: Digest of the selection document.
        deployment: Digest of the deployment document.
        store: s3:// address of the documents.
        dataset: Prepared data.
        quality: The page of the data checks.

    Returns:
        page: The report.
        lines: The verdict and the budget line by line, for those who read it in Kubeflow.
        winner: Confusion matrix of the selected candidate.
    """
    from mlites.task import task

    with task():
        import shutil
        import tempfile
        from pathlib import Path

        from components.artifacts import show_confusion
        from mlites.files import write_atomically
        from mlites.recipe import Recipe
        from mlites.report.markdown import markdown
        from mlites.report.publish import write_run
        from mlites.storage import Store

        with tempfile.TemporaryDirectory() as work:
            documents, folder = Store.open(store), Path(work)
            summary = write_run(
                documents, run or job, Recipe.model_validate(recipe), selection, deployment, Path(dataset.path), folder
            )
            shutil.copyfile(quality.path, folder / "data-quality.html")
            write_atomically(Path(page.path), (folder / "report.html").read_bytes())
            write_atomically(Path(lines.path), markdown(summary))
            show_confusion(documents.get_document(selection), winner)
            documents.put_folder(f"runs/{run or job}", folder)
