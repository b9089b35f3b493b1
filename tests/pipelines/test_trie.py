"""Candidates that begin alike share steps, under names that do not depend on their neighbours."""

from mlites.recipe import Candidate
from pipelines.trie import Node, candidate_nodes, last_node, nodes


def _candidate(name: str, *passes: dict[str, object]) -> Candidate:
    return Candidate.model_validate({"name": name, "passes": passes})


PRUNE: dict[str, object] = {"pass": "prune", "amount": 0.5}
DISTILL: dict[str, object] = {"pass": "distill", "student": {"family": "mlp"}}
QUANTIZE: dict[str, object] = {"pass": "quantize"}
DYNAMIC: dict[str, object] = {"pass": "quantize", "method": "dynamic"}


def test_the_export_stands_before_quantization_or_last() -> None:
    kinds = [
        [node.kind for node in last_node(_candidate("a", *passes).passes).chain]
        for passes in ([PRUNE], [PRUNE, QUANTIZE], [QUANTIZE])
    ]
    assert kinds == [["prune", "export"], ["prune", "export", "quantize"], ["export", "quantize"]]


def test_shared_prefixes_are_one_step_and_parents_come_first() -> None:
    candidates = (
        _candidate("a", QUANTIZE),
        _candidate("b", DYNAMIC),
        _candidate("c", PRUNE),
        _candidate("d", PRUNE, QUANTIZE),
        _candidate("e", PRUNE, DISTILL, QUANTIZE),
    )
    ends = candidate_nodes(candidates)
    steps = list(nodes(list(ends.values())))
    # export of the teacher, 2 quantize on it; prune, its export, quantize; distill, export, quantize
    assert [step.kind for step in steps] == [
        "export",
        "quantize",
        "quantize",
        "prune",
        "export",
        "quantize",
        "distill",
        "export",
        "quantize",
    ]
    assert len({step.name for step in steps}) == len(steps)
    seen: set[str] = set()
    for step in steps:
        assert step.parent is None or step.parent.name in seen
        seen.add(step.name)


def test_names_do_not_change_when_candidates_are_added_or_moved() -> None:
    first = candidate_nodes((_candidate("d", PRUNE, QUANTIZE),))
    second = candidate_nodes(
        (_candidate("x", DISTILL), _candidate("a", QUANTIZE), _candidate("renamed", PRUNE, QUANTIZE))
    )
    assert first["d"].name == second["renamed"].name != second["a"].name


def test_labels_tell_the_way_in_words() -> None:
    assert Node(None).label == "teacher > ONNX"
    assert last_node(_candidate("d", PRUNE, QUANTIZE).passes).label == "prune structured 50% > quantize static"
