"""A program that only loads a model and infers, and prints its peak resident memory: started afresh by `memory`.

It imports ONNX Runtime and NumPy alone; the inputs come as float32 on standard input.
"""

import json
import os
import resource
import sys
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime as ort

INFERENCES = 10


def main(model: str, threads: str, shape: str) -> None:
    """Print peak resident bytes as JSON: ``now`` of this program, ``usage`` as getrusage has it."""
    rows = np.frombuffer(sys.stdin.buffer.read(), np.float32).reshape(json.loads(shape))
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for _ in range(INFERENCES):
        session.run(["logits"], {"input": rows})
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    now = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), usage)
    print(json.dumps({"now": now, "usage": usage}))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit(str(error))
