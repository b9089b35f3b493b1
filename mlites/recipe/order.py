"""Which pass can follow which, and why not."""

from itertools import pairwise

from mlites.recipe.passes import QAT, Distill, Factorize, Pass, Prune, Quantize, Share


def is_unstructured(step: Pass) -> bool:
    """Whether a pass leaves zeros among the weights that later passes must keep."""
    return isinstance(step, Prune) and step.method != "structured"


def check_order(passes: tuple[Pass, ...]) -> None:
    """Refuse a chain that cannot work, or in which one pass undoes another.

    Raises:
        ValueError: with the two passes and the reason.
    """
    first = passes[0]
    if isinstance(first, Distill) and first.student is None:
        raise ValueError("distill without a student cannot come first: the teacher would learn from itself")
    for before, after in pairwise(passes):
        if isinstance(before, Quantize | QAT):
            _refuse_after_integers(before, after)
        if isinstance(before, Share) and not isinstance(after, Quantize):
            raise ValueError(
                f"{after.technique} cannot follow share: it would move the weights off their shared values; "
                "put share after it"
            )
    for index, step in enumerate(passes):
        earlier = passes[:index]
        if isinstance(step, Factorize) and any(is_unstructured(one) for one in _since_new_weights(earlier)):
            raise ValueError("factorize cannot follow unstructured pruning: its factors would be dense; swap them")
        if isinstance(step, Prune) and step.retrain != "fine-tune":
            _refuse_rewinding(step, earlier)


def _refuse_after_integers(before: Pass, after: Pass) -> None:
    if isinstance(after, Quantize | QAT):
        raise ValueError(f"{after.technique} cannot follow {before.technique}: the model is quantized already")
    reasons = {
        "prune": "channels and weights are removed in PyTorch, and retraining needs gradients",
        "factorize": "weights are factorized in floating point",
        "share": "shared values are trained in floating point",
        "distill": "the ONNX file no longer trains",
    }
    raise ValueError(
        f"{after.technique} cannot follow {before.technique}: {reasons[after.technique]}; put {before.technique} last"
    )


def _refuse_rewinding(step: Prune, earlier: tuple[Pass, ...]) -> None:
    """Rewinding returns to the original training, of which other passes leave nothing."""
    for one in earlier:
        if isinstance(one, Distill | Factorize) or (isinstance(one, Prune) and one.method == "structured"):
            if step.retrain == "learning-rate-rewinding" and not isinstance(one, Distill):
                continue
            raise ValueError(
                f"prune with {step.retrain} cannot follow {one.label}: the training to return to was another network's"
            )


def _since_new_weights(passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
    """The passes after the last that drew new weights."""
    for index in range(len(passes) - 1, -1, -1):
        step = passes[index]
        if isinstance(step, Distill) and step.student is not None:
            return passes[index + 1 :]
    return passes
