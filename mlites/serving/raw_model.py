"""Triton Python model ``<model>-raw``: normalises raw rows, asks the model beside it, and answers with probabilities.

mlites writes this file into each version's folder of the repository, with ``raw.json``, which names the model to ask
and holds the numbers of its preprocessing. Version N asks version N, by Triton's business logic scripting, so versions
that serve side by side never mix. It runs in Triton's own environment and imports nothing of mlites. Tensors cross as
DLPack, for the bridge of some stubs predates NumPy 2.
"""

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

USED = b"used_dltensor"  # a capsule keeps the address of its name: it must live as long as the module
_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


class TritonPythonModel:
    """One instance of one version."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read what this version does."""
        folder = Path(args["model_repository"]) / args["model_version"]
        facts = json.loads((folder / "raw.json").read_text())
        across = (1, -1) + (1,) * (len(facts["input_shape"]) - 1)
        self.model, self.version = facts["model"], int(facts["version"])
        self.scale = np.float32(facts["preprocessing"]["scale"])
        self.mean, self.std = (
            np.asarray(facts["preprocessing"][name], np.float32).reshape(across) for name in ("mean", "std")
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests of one dynamic batch by one question, or each by its own if that fails."""
        if len(requests) > 1:
            try:
                return self._run(requests)
            except Exception as error:  # one bad request must not take the others down
                pb_utils.Logger.log_warn(f"{len(requests)} requests failed together, asking for each: {error}")
        return [self._alone(request) for request in requests]

    def _alone(self, request: Any) -> Any:
        try:
            return self._run([request])[0]
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(" ".join(str(error).split())[:500]))

    def _run(self, requests: list[Any]) -> list[Any]:
        parts = [np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "raw")) for request in requests]
        inputs = np.array(parts[0] if len(parts) == 1 else np.concatenate(parts), dtype=np.float32, order="C")
        inputs *= self.scale
        inputs -= self.mean
        inputs /= self.std
        logits = self._ask(inputs)
        powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
        classes = logits.argmax(axis=1)[:, None].astype(np.int64)
        responses, start = [], 0
        for part in parts:
            rows = slice(start, start + len(part))
            outputs = [_tensor("probabilities", probabilities[rows]), _tensor("class", classes[rows])]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
            start += len(part)
        return responses

    def _ask(self, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        request = pb_utils.InferenceRequest(
            model_name=self.model,
            model_version=self.version,
            requested_output_names=["logits"],
            inputs=[_tensor("input", inputs)],
        )
        answer = request.exec()
        if answer.has_error():
            raise pb_utils.TritonModelException(answer.error().message())
        return np.array(np.from_dlpack(pb_utils.get_output_tensor_by_name(answer, "logits")))


def _tensor(name: str, array: np.ndarray[Any, Any]) -> Any:
    """Hand an array to Triton. Its stub marks the capsule as used by a wrong name, which NumPy reports on each call."""
    capsule = np.ascontiguousarray(array).__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    _set_name(capsule, USED)
    return tensor
