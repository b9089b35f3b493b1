"""Candidates that begin alike share their first steps: chains of passes become a trie."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from mlites.files import digest_json
from mlites.recipe import Candidate, Distill, Prune, Quantize

Pass = Distill | Prune | Quantize


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
    """The last node of a chain; the export comes before the first ONNX pass, or last."""
    node: Node | None = None
    exported = False
    for step in passes:
        if isinstance(step, Quantize) and not exported:
            node, exported = Node(None, node), True
        node = Node(step, node)
    return node if node is not None and exported else Node(None, node)


def candidate_nodes(candidates: tuple[Candidate, ...]) -> dict[str, Node]:
    """The last node of every candidate."""
    return {candidate.name: last_node(candidate.passes) for candidate in candidates}


def nodes(ends: Iterator[Node] | list[Node]) -> Iterator[Node]:
    """Every node once, parents first; the teacher's own export, which is the baseline, is among them."""
    seen: set[str] = set()
    for end in [Node(None), *ends]:
        for node in end.chain:
            if node.name not in seen:
                seen.add(node.name)
                yield node
