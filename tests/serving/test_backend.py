"""The embedded "onnxruntime" backend, asked through Triton."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from numpy.typing import NDArray

from mlites.models.card import read_card
from mlites.recipe import Serving
from mlites.serving.repository import configuration, configuration_json
from mlites.serving.server import Triton, TritonRefused


def load(triton: Triton, name: str, folder: Path, serving: Serving, **changes: Any) -> None:
    config = configuration_json(configuration(name, read_card(folder), serving, [1], 1))
    triton.load_apart(name, {**config, **changes}, {"1/model.onnx": (folder / "model.onnx").read_bytes()})


def statistics(triton: Triton, name: str) -> dict[str, Any]:
    """Triton's own counts for the model: rows, and runs of the backend."""
    with tritonclient.http.InferenceServerClient(triton.url.removeprefix("http://")) as client:
        return dict(client.get_inference_statistics(name)["model_stats"][0])


def test_requests_that_wait_together_run_as_one_batch_and_get_their_own_rows(
    triton: Triton, models: Any, golden: NDArray[np.float32], name: str
) -> None:
    load(triton, name, models.folder(1), Serving(max_queue_delay_us=300_000, max_batch_size=6))
    warm = statistics(triton, name)
    parts = [golden[:1], golden[1:3], golden[3:6]]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda rows: triton.infer_http(name, 1, rows), parts))
    for rows, answer in zip(parts, answers, strict=True):
        np.testing.assert_allclose(answer, rows @ models.weight(1), atol=1e-5)
    found = statistics(triton, name)
    assert found["inference_count"] - warm["inference_count"] == 6
    assert found["execution_count"] - warm["execution_count"] < 3
    triton.unload(name)


def test_instances_answer_alike(triton: Triton, models: Any, golden: NDArray[np.float32], name: str) -> None:
    load(triton, name, models.folder(1), Serving(instances=2, max_queue_delay_us=0))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: triton.infer_grpc(name, 1, golden), range(16)))
    for answer in answers:
        np.testing.assert_allclose(answer, golden @ models.weight(1), atol=1e-5)
    triton.unload(name)


def test_a_model_that_is_not_batched_takes_the_whole_shape(
    triton: Triton, models: Any, golden: NDArray[np.float32], name: str
) -> None:
    config = {
        "name": name,
        "backend": "onnxruntime",
        "max_batch_size": 0,
        "input": [{"name": "input", "data_type": "TYPE_FP32", "dims": [-1, 4]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [-1, 3]}],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
    }
    triton.load_apart(name, config, {"1/model.onnx": models.onnx(1)})
    np.testing.assert_allclose(triton.infer_http(name, 1, golden), golden @ models.weight(1), atol=1e-5)
    triton.unload(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"input": [{"name": "input", "data_type": "TYPE_FP32", "dims": [5]}], "model_warmup": []},
            r"input 'input': the configuration says \[-1, 5\], the model \[-1, 4\]",
        ),
        (
            {"output": [{"name": "scores", "data_type": "TYPE_FP32", "dims": [3]}]},
            r"the model has no output 'scores'; it has logits",
        ),
        (
            {"output": [{"name": "logits", "data_type": "TYPE_INT64", "dims": [3]}]},
            r"output 'logits': the configuration says TYPE_INT64, the model tensor\(float\)",
        ),
        (
            {"parameters": {"intra_op_thread_count": {"string_value": "many"}}},
            r"parameter intra_op_thread_count must be a number of threads, got 'many'",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_the_model_is_told(
    triton: Triton, models: Any, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TritonRefused, match=message):
        load(triton, name, models.folder(1), Serving(), **changes)


def test_a_file_that_is_not_onnx_is_told(triton: Triton, models: Any, name: str) -> None:
    folder = models.folder(1)
    config = configuration_json(configuration(name, read_card(folder), Serving(), [1], 1))
    with pytest.raises(TritonRefused, match=r"model\.onnx does not load: .*INVALID_PROTOBUF"):
        triton.load_apart(name, config, {"1/model.onnx": b"not a model"})


def test_a_request_of_another_shape_is_refused_and_the_next_is_answered(
    triton: Triton, models: Any, golden: NDArray[np.float32], name: str
) -> None:
    load(triton, name, models.folder(1), Serving(max_batch_size=8))
    for wrong in (golden[:, :3], golden[:9]):
        with pytest.raises(TritonRefused, match=r"unexpected shape|batch-size must be"):
            triton.infer_http(name, 1, np.ascontiguousarray(wrong))
    np.testing.assert_allclose(triton.infer_http(name, 1, golden[:8]), golden[:8] @ models.weight(1), atol=1e-5)
    triton.unload(name)
