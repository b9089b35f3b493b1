"""Make a network small and fast enough for the hardware people have, prove it there, and serve it safely."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime phones home otherwise; read when it loads

__version__ = "0.1.0"
