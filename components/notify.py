"""Publish the run's page whatever became of it, and tell whoever waits."""

from kfp import dsl

from components.images import DEPLOY


@dsl.component(base_image=DEPLOY, install_kfp_package=False)
def notify(
    run: str,
    job: str,
    recipe: dict,  # type: ignore[type-arg]
    store: str,
    status: dsl.PipelineTaskFinalStatus,
) -> None:
    """Publish the run's page whatever became of it, and tell whoever waits.

    Args:
        run: Name of the run; empty to take the job's.
        job: Name that Kubeflow gave the run.
        recipe: The whole recipe.
        store: s3:// address of the documents.
        status: What Kubeflow says of the run.
    """
    from mlites.report.closing import close_run

    close_run(store, run or job, recipe, str(status.state))
