"""Candidates that begin alike share their first steps: chains of passes become a trie."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from mlites.compression.quantization.reduce_range import target_saturates
from mlites.files import digest_json
from mlites.recipe import QAT, Candidate, Hardware, Pass, Quantize


@dataclass(frozen=True)
class Node:
    """One step on the way from the teacher to a candidate.

    A pass of the recipe, or (``step`` is None) the export to ONNX that stands between PyTorch and ONNX passes.
    """

    step: Pass | None
    parent: "Node | None" = field(repr=False, default=None)

    @property
    def kind(self) -> str:
        """Name of the component that runs the step."""
        return self.step.technique if self.step else "export"

    @property
    def chain(self) -> "tuple[Node, ...]":
        """All steps from the teacher to this one."""
        return (*self.parent.chain, self) if self.parent else (self,)

    @property
    def name(self) -> str:
        """Stable name: it depends on the passes up to here, not on the other candidates or their order."""
        passes = [node.step.model_dump(mode="json") if node.step else "export" for node in self.chain]
        return f"{self.kind}-{digest_json(passes)[:6]}"

    @property
    def label(self) -> str:
        """The steps up to here in words."""
        words = [node.step.label for node in self.chain if node.step] or ["teacher"]
        return " > ".join(words) + (" > ONNX" if self.step is None else "")


def last_node(passes: tuple[Pass, ...]) -> Node:
    """The last node of a chain; the export comes before quantization, or last; training in INT8 exports by itself."""
    node: Node | None = None
    for step in passes:
        node = Node(step, Node(None, node) if isinstance(step, Quantize) else node)
    return node if node is not None and isinstance(node.step, QAT | Quantize) else Node(None, node)


def source_node(end: Node) -> Node:
    """The float ONNX model that a candidate was quantized from; the candidate itself if it was not."""
    if isinstance(end.step, QAT):
        return Node(None, end.parent)
    return end.parent if isinstance(end.step, Quantize) and end.parent else end


def candidate_nodes(candidates: tuple[Candidate, ...], hardware: Hardware) -> dict[str, Node]:
    """The last node of every candidate, its passes as the target needs them."""
    return {one.name: last_node(tuple(_for_target(step, hardware) for step in one.passes)) for one in candidates}


def _for_target(step: Pass, hardware: Hardware) -> Pass:
    """``reduce_range: auto`` is decided by the profile; where that says nothing, by the machine that runs the step."""
    saturates = target_saturates(hardware)
    if not isinstance(step, QAT | Quantize) or step.reduce_range != "auto" or saturates is None:
        return step
    if isinstance(step, Quantize) and step.method not in ("static", "dynamic"):
        return step
    return step.model_copy(update={"reduce_range": saturates})


def nodes(ends: Iterator[Node] | list[Node]) -> Iterator[Node]:
    """Every node once, parents first; the teacher's own export, the baseline, and the candidates' sources too."""
    seen: set[str] = set()
    for last in [Node(None), *(one for end in ends for one in (source_node(end), end))]:
        for node in last.chain:
            if node.name not in seen:
                seen.add(node.name)
                yield node
