"""Triton Python-based backend "onnxruntime": runs model.onnx where Triton's C++ ONNX Runtime backend is not at hand.

The embedded stack copies this file to ``<backends>/onnxruntime/model.py``, where it runs in Triton's own environment,
so it imports nothing of mlites. Tensors cross as DLPack, for the bridge of Triton's stub predates NumPy 2.
"""

import ctypes
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

TRITON_OF_ONNX = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(double)": "TYPE_FP64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
}

USED = b"used_dltensor"  # a capsule keeps the address of its name: it must live as long as the module
_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


class TritonPythonModel:
    """One instance of one version of a model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version's model.onnx and compare it with the configuration."""
        config = json.loads(args["model_config"])
        self.batches = config.get("max_batch_size", 0) > 0
        filename = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / filename
        promised = config.get("parameters", {}).get(f"sha256.{args['model_version']}", {}).get("string_value")
        if promised and hashlib.sha256(path.read_bytes()).hexdigest() != promised:
            version = args["model_version"]
            raise pb_utils.TritonModelException(f"{path.name} of version {version} is not the file that was released")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads(config, "intra_op_thread_count")
        options.inter_op_num_threads = self._threads(config, "inter_op_thread_count")
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise pb_utils.TritonModelException(f"{path.name} does not load: {_line(error)}") from None
        self._check("input", config["input"], self.session.get_inputs())
        self._check("output", config["output"], self.session.get_outputs())
        self.inputs = [item["name"] for item in config["input"]]
        self.outputs = [item["name"] for item in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests of one dynamic batch with one run, or each alone if that fails."""
        if self.batches and len(requests) > 1:
            try:
                return self._run(requests)
            except Exception as error:  # one bad request must not take the others down
                pb_utils.Logger.log_warn(
                    f"batch of {len(requests)} requests failed, running each alone: {_line(error)}"
                )
        return [self._alone(request) for request in requests]

    def _alone(self, request: Any) -> Any:
        try:
            return self._run([request])[0]
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(_line(error)))

    def _run(self, requests: list[Any]) -> list[Any]:
        feeds, rows = {}, [1] * len(requests)
        for name in self.inputs:
            parts = [np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name)) for request in requests]
            rows = [len(part) if self.batches else 1 for part in parts]
            feeds[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        results = self.session.run(self.outputs, feeds)
        if len(requests) == 1:
            return [self._response(results)]
        edges = np.cumsum(rows)[:-1]
        return [self._response(pieces) for pieces in zip(*(np.split(one, edges) for one in results), strict=True)]

    def _response(self, arrays: Any) -> Any:
        pairs = zip(self.outputs, arrays, strict=True)
        return pb_utils.InferenceResponse(output_tensors=[_tensor(name, array) for name, array in pairs])

    def _threads(self, config: dict[str, Any], key: str) -> int:
        text = config.get("parameters", {}).get(key, {}).get("string_value", "0")
        if not text.isdecimal():
            raise pb_utils.TritonModelException(f"parameter {key} must be a number of threads, got {text!r}")
        return int(text)

    def _check(self, kind: str, configured: list[dict[str, Any]], actual: list[Any]) -> None:
        """Compare names, types and dimensions; a dimension is free in ONNX where it is not a number."""
        found = {item.name: item for item in actual}
        for item in configured:
            name = item["name"]
            if name not in found:
                names = ", ".join(found)
                raise pb_utils.TritonModelException(f"the model has no {kind} {name!r}; it has {names}")
            dims = ([-1] if self.batches else []) + [int(size) for size in item["dims"]]
            shape = [size if isinstance(size, int) else -1 for size in found[name].shape]
            fits = len(dims) == len(shape) and all(a == b or -1 in (a, b) for a, b in zip(dims, shape, strict=True))
            if not fits or (self.batches and shape[0] != -1):
                raise pb_utils.TritonModelException(
                    f"{kind} {name!r}: the configuration says {dims}, the model {shape}"
                )
            if TRITON_OF_ONNX.get(found[name].type) != item["data_type"]:
                raise pb_utils.TritonModelException(
                    f"{kind} {name!r}: the configuration says {item['data_type']}, the model {found[name].type}"
                )


def _tensor(name: str, array: np.ndarray[Any, Any]) -> Any:
    """Hand an array to Triton. Its stub marks the capsule as used by a wrong name, which NumPy reports on each call."""
    capsule = np.ascontiguousarray(array).__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    _set_name(capsule, USED)
    return tensor


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
