"""Choose the best candidate."""

from typing import List

from kfp import dsl

from components.images import VALIDATE


@dsl.component(base_image=VALIDATE, install_kfp_package=False)
def select(verdicts: List[str], budget: dict, store: str) -> str:  # type: ignore[type-arg]
    """Choose the best candidate, whether or not it meets the budget.

    Args:
        verdicts: Digests of the verdict documents.
        budget: The recipe's budget section.
        store: s3:// address of the documents.

    Returns:
        Digest of the selection document.
    """
    from mlites.task import task

    with task():
        from mlites.hardware.selection import select
        from mlites.recipe import Budget
        from mlites.storage import Store

        documents = Store.open(store)
        selection = select([documents.get_document(digest) for digest in verdicts], Budget.model_validate(budget))
        print(selection["reason"])
        return documents.put_document(selection)
