"""Candidates that begin alike share steps, under names that do not depend on their neighbours."""

from mlites.recipe import Candidate, Hardware, Quantize
from mlites.recipe.profiles import load_profile
from pipelines.trie import Node, candidate_nodes, last_node, nodes, source_node


def _candidate(name: str, *passes: dict[str, object]) -> Candidate:
    return Candidate.model_validate({"name": name, "passes": passes})


PRUNE: dict[str, object] = {"pass": "prune", "amount": 0.5}
DISTILL: dict[str, object] = {"pass": "distill", "student": {"family": "mlp"}}
QUANTIZE: dict[str, object] = {"pass": "quantize"}
QAT: dict[str, object] = {"pass": "qat"}
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
    ends = candidate_nodes(candidates, Hardware())
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
    first = candidate_nodes((_candidate("d", PRUNE, QUANTIZE),), Hardware())
    second = candidate_nodes(
        (_candidate("x", DISTILL), _candidate("a", QUANTIZE), _candidate("renamed", PRUNE, QUANTIZE)), Hardware()
    )
    assert first["d"].name == second["renamed"].name != second["a"].name


def test_labels_tell_the_way_in_words() -> None:
    assert Node(None).label == "teacher > ONNX"
    assert last_node(_candidate("d", PRUNE, QUANTIZE).passes).label == "prune structured 50% > quantize static"


def test_training_in_int8_exports_by_itself_and_its_source_is_the_float_export() -> None:
    end = last_node(_candidate("a", PRUNE, QAT).passes)
    assert [node.kind for node in end.chain] == ["prune", "qat"]
    assert [node.kind for node in source_node(end).chain] == ["prune", "export"]
    assert {node.name for node in nodes([end])} >= {end.name, source_node(end).name}


def test_the_source_of_a_quantized_model_is_its_export_and_of_another_itself() -> None:
    quantized, float_ = (last_node(_candidate("a", *passes).passes) for passes in ([PRUNE, QUANTIZE], [PRUNE]))
    assert source_node(quantized) == float_ == source_node(float_)
    assert source_node(last_node(_candidate("a", QUANTIZE).passes)) == Node(None)


def test_a_target_without_int8_dot_products_gets_weights_of_7_bits_wherever_the_step_runs() -> None:
    candidates = (_candidate("a", QUANTIZE), _candidate("b", {"pass": "qat"}), _candidate("c", DYNAMIC))

    def decided(hardware: Hardware) -> list[object]:
        return [getattr(end.step, "reduce_range", None) for end in candidate_nodes(candidates, hardware).values()]

    assert decided(Hardware()) == ["auto"] * 3
    assert decided(Hardware(without_isa=("vnni",))) == [True] * 3
    assert decided(Hardware(isa=("avx2", "fma"))) == [True] * 3
    assert decided(Hardware(isa=("avx2", "avx512_vnni"))) == [False] * 3
    assert decided(load_profile("edge-arm-class")) == [False] * 3


def test_what_the_recipe_says_of_the_range_stands_whatever_the_target() -> None:
    candidate = _candidate("a", {"pass": "quantize", "reduce_range": False})
    end = candidate_nodes((candidate,), Hardware(without_isa=("vnni",)))["a"]
    assert isinstance(end.step, Quantize) and end.step.reduce_range is False
