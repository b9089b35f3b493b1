"""Decide whether the selected candidate may be deployed."""

from kfp import dsl

from components.images import DEPLOY


@dsl.component(base_image=DEPLOY, install_kfp_package=False)
def gate(selection: str, store: str) -> bool:
    """Decide whether the selected candidate may be deployed.

    Args:
        selection: Digest of the selection document.
        store: s3:// address of the documents.

    Returns:
        True if every line of the budget is met; an undecided line is not, unless the recipe lets it pass.
    """
    from mlites.task import task

    with task():
        from mlites.storage import Store

        return bool(Store.open(store).get_document(selection)["within_budget"])
