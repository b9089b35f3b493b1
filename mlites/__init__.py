"""Make a neural network small and fast enough for the hardware people have, prove it there, and serve it safely."""

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime phones home otherwise; read when it loads

if TYPE_CHECKING:
    from mlites.toolbox import arrays, distill, factorize, prune, qat, quantize, share, to_onnx, train, transfer

__version__ = "0.1.0"
__all__ = ["arrays", "distill", "factorize", "prune", "qat", "quantize", "share", "to_onnx", "train", "transfer"]


def __getattr__(name: str) -> Any:
    """The notebook's functions, loaded when first asked for: PyTorch takes seconds that most callers do not need."""
    if name not in __all__:
        raise AttributeError(f"module 'mlites' has no attribute {name!r}")
    from mlites import toolbox

    return getattr(toolbox, name)
