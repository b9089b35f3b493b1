"""Record that nothing was deployed, and why."""

from kfp import dsl

from components.images import DEPLOY


@dsl.component(base_image=DEPLOY, install_kfp_package=False)
def decline(selection: str, model: str, store: str) -> str:
    """Record that nothing was deployed, and why; what Triton serves stays as it is.

    Args:
        selection: Digest of the selection document.
        model: Name in Triton.
        store: s3:// address of the documents.

    Returns:
        Digest of the deployment document.
    """
    from mlites.task import task

    with task():
        from mlites.serving.deploy import declined
        from mlites.storage import Store

        documents = Store.open(store)
        return documents.put_document(declined(documents.get_document(selection), model))
