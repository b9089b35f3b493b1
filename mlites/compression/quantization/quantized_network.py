"""The exported graph with all that rounds and normalizes in it, as it trains."""

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from mlites.compression.quantization.fake_quantization import (
    ActivationQuantizer,
    BiasQuantizer,
    Clock,
    ConstantQuantizer,
    SameRange,
    WeightQuantizer,
)
from mlites.compression.quantization.folded_norm import FoldedNorm, Moments, NormBias, NormOutput, find_folded
from mlites.compression.quantization.onnx_network import OnnxNetwork
from mlites.compression.quantization.qdq_export import Places

FREEZE_STATISTICS_AT = 0.75  # share of the training after which normalization keeps its statistics
FREEZE_RANGES_AT = 0.9  # later, so that ranges settle on what the frozen layers give
ROWS_AT_A_TIME = 32


class QuantizedNetwork(OnnxNetwork):
    """Rounds wherever the quantized graph does.

    Args:
        prepared: the float graph.
        module: that it was exported from; tells which numbers of the graph are learned and which are constants.
        places: where to round, with the ranges to start from.
        rows: (n, *input_shape) to measure the statistics of folded normalizations on.
        levels: largest integer of a weight.
        steps: batches of the whole training.
    """

    def __init__(
        self,
        prepared: onnx.ModelProto,
        module: nn.Module,
        places: Places,
        rows: NDArray[np.float32],
        levels: int,
        steps: int,
    ) -> None:
        clock = Clock()
        ranges, points = _activation_points(prepared, places, clock, int(FREEZE_RANGES_AT * steps))
        weights = {name: WeightQuantizer(one.axis, levels) for name, one in places.weights.items()}
        owners = {places.activations[name].scale: one for name, one in ranges.items()}
        for name, bias in places.biases.items():
            source = owners[places.activations[bias.source].scale]
            points[name] = BiasQuantizer(source, weights[bias.weight], bias.factor)
        points |= weights
        points |= {name: ConstantQuantizer() for name in places.constants}
        norms = {}
        folded = [one for one in find_folded(module, prepared) if one.weight in places.weights]
        moments = _measure(prepared, [one.output for one in folded], rows)
        biases = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in prepared.graph.initializer}
        for one in folded:
            norm = FoldedNorm(
                one.factor,
                biases[one.bias],
                moments[one.output],
                weights[one.weight],
                clock,
                int(FREEZE_STATISTICS_AT * steps),
            )
            points[one.weight] = norms[one.weight] = norm
            points[one.bias] = NormBias(norm, points.get(one.bias))
            points[one.output] = NormOutput(norm, points.get(one.output))
        learned = _learned(module, prepared, places) - {one.bias for one in folded}
        super().__init__(prepared, learned, points)
        self.clock, self.ranges = clock, ranges
        self._places, self._learned, self._norms = places, learned, norms
        self._bias_of = {one.bias: one.weight for one in folded}
        with torch.no_grad():
            for one in folded:
                self.stored(one.weight).copy_(norms[one.weight].unfold(self.stored(one.weight)))

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, *input_shape) -> logits (n, classes)."""
        if self.training:
            self.clock.batches += 1
        return super().forward(inputs)

    def learned_ranges(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Activation -> low and high, for the first of those that share them."""
        return {name: (quantizer.low, quantizer.high) for name, quantizer in self.ranges.items()}

    def learned_tensors(self) -> dict[str, Tensor]:
        """All that training changed or the quantized graph stores as integers, folded, by name."""
        places = self._places
        found = {}
        with torch.no_grad():
            for name in sorted({*self._learned, *places.weights, *places.constants, *places.biases}):
                if name in self._bias_of:
                    found[name] = self._norms[self._bias_of[name]].folded_bias()
                elif name in self._norms:
                    found[name] = self._norms[name].fold(self.stored(name))
                else:
                    found[name] = self.stored(name)
        return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in found.items()}


def _activation_points(
    prepared: onnx.ModelProto, places: Places, clock: Clock, freeze_after: int
) -> tuple[dict[str, ActivationQuantizer], dict[str, nn.Module]]:
    """Those that learn a range, and all that round: of tensors that share a range, the first learns it."""
    graph = prepared.graph
    ranges: dict[str, ActivationQuantizer] = {}
    points: dict[str, nn.Module] = {}
    owners: dict[str, ActivationQuantizer] = {}
    for name in [one.name for one in graph.input] + [name for node in graph.node for name in node.output]:
        pair = places.activations.get(name)
        if pair and pair.scale in owners:
            points[name] = SameRange(owners[pair.scale])
        elif pair:
            quantizer = ActivationQuantizer(pair.low, pair.high, clock, freeze_after)
            points[name] = ranges[name] = owners[pair.scale] = quantizer
    return ranges, points


def _learned(module: nn.Module, prepared: onnx.ModelProto, places: Places) -> set[str]:
    """What training may change: weights and biases of layers, and what holds the numbers of a parameter."""
    learned = {_bytes(one) for one in module.parameters() if one.requires_grad and one.numel() > 1}
    fixed = {_bytes(one) for one in (*module.buffers(), *module.parameters())} - learned
    found = set()
    for one in prepared.graph.initializer:
        content = numpy_helper.to_array(one).tobytes()
        in_layer = one.name in places.weights or one.name in places.biases
        if one.data_type == onnx.TensorProto.FLOAT and (content in learned or (in_layer and content not in fixed)):
            found.add(one.name)
    return found


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def _measure(
    prepared: onnx.ModelProto, outputs: list[str], rows: NDArray[np.float32]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of each channel of tensors, in the float graph."""
    points = {name: Moments() for name in outputs}
    network = OnnxNetwork(prepared, [], points).eval()
    with torch.no_grad():
        for at in range(0, len(rows) if points else 0, ROWS_AT_A_TIME):
            network(torch.from_numpy(rows[at : at + ROWS_AT_A_TIME]))
    return {name: one.result() for name, one in points.items()}
