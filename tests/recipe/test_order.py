"""Chains that cannot work are refused with both passes and the reason; all others are accepted."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from mlites.recipe import Candidate, Pass, Recipe

STUDENT = {"family": "mlp", "hidden": [8]}
PASSES: dict[str, dict[str, Any]] = {
    "recover": {"pass": "distill"},
    "distill": {"pass": "distill", "student": STUDENT},
    "structured": {"pass": "prune", "amount": 0.5},
    "magnitude": {"pass": "prune", "method": "magnitude", "amount": 0.5},
    "2:4": {"pass": "prune", "method": "n-m"},
    "lr-rewinding": {"pass": "prune", "method": "magnitude", "amount": 0.5, "retrain": "learning-rate-rewinding"},
    "rewinding": {"pass": "prune", "method": "magnitude", "amount": 0.5, "retrain": "weight-rewinding"},
    "factorize": {"pass": "factorize"},
    "share": {"pass": "share"},
    "qat": {"pass": "qat"},
    "quantize": {"pass": "quantize"},
}


def chain(*names: str) -> Candidate:
    return Candidate.model_validate({"name": "a", "passes": [PASSES[name] for name in names]})


@pytest.mark.parametrize(
    "names",
    [
        "structured recover quantize",
        "distill distill quantize",
        "factorize structured magnitude share quantize",
        "structured factorize recover qat",
        "magnitude recover share",
        "magnitude distill factorize",
        "magnitude rewinding",
        "structured lr-rewinding",
        "factorize lr-rewinding share",
        "2:4 structured",
    ],
)
def test_orders_that_make_sense_are_accepted(names: str) -> None:
    chain(*names.split())


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("recover", "distill without a student cannot come first: the teacher would learn from itself"),
        ("quantize structured", "prune cannot follow quantize: channels and weights are removed in PyTorch"),
        ("quantize distill", "distill cannot follow quantize: the ONNX file no longer trains; put quantize last"),
        ("qat factorize", "factorize cannot follow qat: weights are factorized in floating point; put qat last"),
        ("qat quantize", "quantize cannot follow qat: the model is quantized already"),
        ("quantize quantize", "quantize cannot follow quantize: the model is quantized already"),
        ("share structured", "prune cannot follow share: it would move the weights off their shared values"),
        ("share qat", "qat cannot follow share"),
        ("magnitude factorize", "factorize cannot follow unstructured pruning: its factors would be dense"),
        ("2:4 recover factorize", "factorize cannot follow unstructured pruning"),
        ("distill rewinding", "prune with weight-rewinding cannot follow distill to mlp 8"),
        ("distill lr-rewinding", "prune with learning-rate-rewinding cannot follow distill to mlp 8"),
        ("structured rewinding", "prune with weight-rewinding cannot follow prune structured 50%"),
    ],
)
def test_orders_that_cannot_work_are_refused_with_the_reason(names: str, reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        chain(*names.split())
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"pass": "prune", "method": "n-m", "n": 4, "m": 4}, "n must be below m"),
        ({"pass": "prune", "n": 1}, "n belongs to method: n-m"),
        ({"pass": "prune", "method": "magnitude", "importance": "taylor"}, "importance belongs to method: structured"),
        ({"pass": "prune", "schedule": "gradual"}, "use schedule: iterative"),
        ({"pass": "prune", "method": "n-m", "schedule": "iterative"}, "reached at once"),
        ({"pass": "prune", "method": "magnitude", "rates": "sensitivity"}, "use layerwise or structured"),
        ({"pass": "prune", "retrain": "weight-rewinding"}, "returns single weights to earlier values"),
        ({"pass": "prune", "rewind_epoch": 3}, "rewind_epoch belongs to rewinding"),
        ({"pass": "factorize", "energy": 0.9, "budget": 0.5}, "give energy or budget, not both"),
        ({"pass": "factorize", "method": "depthwise-separable", "budget": 0.5}, "has no rank to choose"),
        ({"pass": "distill", "initialize": "teacher"}, "needs a student"),
        ({"pass": "distill", "student": STUDENT, "method": "attention"}, "which an mlp does not have"),
        ({"pass": "distill", "student": STUDENT, "feature_weight": 2}, "looks at the outputs alone"),
        ({"pass": "distill", "student": STUDENT, "average_views": True}, "average_views needs training.views"),
        (
            {
                "pass": "distill",
                "student": STUDENT,
                "method": "hints",
                "average_views": True,
                "training": {"augmentation": ["flip"], "views": 2},
            },
            "average_views is of outputs alone, but hints looks inside",
        ),
        (
            {"pass": "distill", "student": STUDENT, "training": {"crop_fraction": 0.1}},
            "belongs to augmentation: [crop]",
        ),
        ({"pass": "quantize", "sensitive_layers": 2, "max_drop_points": 1}, "both decide what stays in float"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Pass).validate_python(given)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("teacher", "epoch", "reason"),
    [
        ({"factory": "nets:build", "weights": "w.safetensors"}, 0, "which given weights lack"),
        ({"architecture": STUDENT, "training": {"epochs": 5}}, 5, "rewind_epoch must be below the teacher's 5 epochs"),
    ],
)
def test_rewinding_needs_a_training_to_return_to(teacher: dict[str, Any], epoch: int, reason: str) -> None:
    step = PASSES["lr-rewinding"] | {"rewind_epoch": epoch}
    recipe = {"name": "a", "data": {"source": "digits"}, "teacher": teacher}
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(recipe | {"candidates": [{"name": "one", "passes": [step]}]})
    assert reason in str(caught.value)


def test_networks_of_the_users_own_are_trusted_wherever_the_recipe_names_them() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "a",
            "data": {"source": "digits"},
            "teacher": {"factory": "nets:teacher", "weights": "w.safetensors"},
            "candidates": [
                {
                    "name": "b",
                    "passes": [{"pass": "distill", "student": {"family": "factory", "factory": "nets:small"}}],
                }
            ],
        }
    )
    assert recipe.factories == ("nets:teacher", "nets:small")


def test_whole_numbers_survive_kfp_which_hands_on_floats() -> None:
    given = {"pass": "distill", "student": {"family": "factory", "factory": "a:b", "options": {"width": 8.0, "p": 0.5}}}
    step: Any = TypeAdapter(Pass).validate_python(given)
    assert step.student.options == {"width": 8, "p": 0.5} and isinstance(step.student.options["width"], int)
