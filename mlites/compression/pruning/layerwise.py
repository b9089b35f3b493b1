"""Layer-wise magnitude pruning: each layer loses its own share of its smallest weights.

Source: Han, Pool, Tran & Dally (2015), "Learning both Weights and Connections for Efficient Neural Networks".
"""

from collections.abc import Mapping

from torch import Tensor, nn

from mlites.compression.pruning.magnitude import largest, prunable_weights


def layerwise_masks(module: nn.Module, rates: Mapping[str, float]) -> dict[str, Tensor]:
    """Where the weights stay when each layer loses its rate.

    Args:
        module: read alone.
        rates: parameter name -> fraction of its weights to remove, in [0, 1).

    Returns:
        Parameter name -> bool tensor of its shape.

    Raises:
        ValueError: a rate outside its range.
    """
    weights = prunable_weights(module)
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"the rate of {name} must be at least 0 and below 1, got {rate}")
    return {name: largest(weights[name].flatten(), rate).view_as(weights[name]) for name, rate in rates.items()}
