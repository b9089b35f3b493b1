"""A program that loads a model and infers once within a limit of memory: started afresh by `inference.check_file`.

It imports ONNX Runtime and NumPy alone; the inputs, if any, come as float32 on standard input. What it has to say is
one JSON document on standard output: which stage failed, and the runtime's words.
"""

import json
import os
import resource
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime as ort


def main(model: str, limit: int, shape: list[int] | None) -> None:
    """Print ``{"stage": "load" | "run", "error": ...}`` if one of the two fails.

    Args:
        model: path of the file.
        limit: bytes of data this process may hold, its own some 100 MiB included.
        shape: of the inputs, or None to take one row of zeros where the model says what a row is.
    """
    rows = np.frombuffer(sys.stdin.buffer.read(), np.float32).reshape(shape) if shape is not None else None
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    stage = "load"
    try:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        stage = "run"
        inputs = session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            return
        batch, *row = inputs[0].shape or [None]
        if rows is None:
            if not all(isinstance(edge, int) for edge in row):
                return
            rows = np.zeros((1, *row), np.float32)
        if isinstance(batch, int) and batch != len(rows):
            rows = np.resize(rows, (batch, *rows.shape[1:]))
        session.run(None, {inputs[0].name: rows})
    except Exception as error:
        print(json.dumps({"stage": stage, "error": f"{type(error).__name__}: {error}"[:2000]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
