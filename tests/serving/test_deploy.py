import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from numpy.typing import NDArray

from mlites import stack as embedded
from mlites.errors import InputError
from mlites.files import digest_file
from mlites.models.card import read_card, write_model_folder
from mlites.recipe import Serving
from mlites.recipe.promotion import Promotion
from mlites.serving.deploy import declined, release_facts
from mlites.serving.deploy import deploy as deploy_here
from mlites.serving.sandbox import sandbox
from mlites.serving.server import Triton, TritonRefused
from mlites.serving.steps import PromotionFailed
from mlites.stack import process
from mlites.storage import Store

SERVING = Serving(promotion=Promotion(agreement=0, slower=20, trial_seconds=0.2, shadow_seconds=0, watch_seconds=0.1))


def ask(triton: Triton, name: str, rows: NDArray[np.float32], version: str = "") -> NDArray[np.float32]:
    """Logits of a version, or of the one that a caller gets who names none."""
    with tritonclient.http.InferenceServerClient(triton.url.removeprefix("http://")) as client:
        value = tritonclient.http.InferInput("input", list(rows.shape), "FP32")
        value.set_data_from_numpy(rows)
        return np.asarray(client.infer(name, [value], model_version=version).as_numpy("logits"))


def ready(triton: Triton, name: str) -> list[int]:
    """Versions that Triton serves."""
    with tritonclient.http.InferenceServerClient(triton.url.removeprefix("http://")) as client:
        index = client.get_model_repository_index()
    return sorted(int(one["version"]) for one in index if one["name"] == name and one.get("state") == "READY")


@pytest.fixture(scope="module", autouse=True)
def _one_sandbox() -> Iterator[None]:
    """One sandbox for all tests here, named as in a cluster."""
    with sandbox({}) as box, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLITES_SANDBOX_URL", box.triton.url)
        patch.setenv("MLITES_SANDBOX_GRPC", box.triton.grpc)
        yield


def deploy(*arguments: Any, **options: Any) -> dict[str, Any]:
    """Without the words that are other each time."""
    document = deploy_here(*arguments, **options)
    document.pop("findings")
    return document


class Interfered(Store):
    """A store in which something happens when a version has been written, before it is loaded."""

    def before(self) -> None:
        raise NotImplementedError

    def put_folder(self, prefix: str, folder: Path) -> None:
        super().put_folder(prefix, folder)
        if prefix.startswith("repository/"):
            self.before()


def test_versions_serve_side_by_side_and_the_last_is_the_default(
    served: Store, triton: Triton, models: Any, golden: NDArray[np.float32], name: str
) -> None:
    folders = [models.folder(seed) for seed in (1, 2, 3)]
    documents = [deploy(served, folder, name, SERVING, golden) for folder in folders]
    assert documents[1] == {
        "format": "mlites-deployment/1",
        "status": "deployed",
        "model": name,
        "version": 2,
        "release": documents[1]["release"],
        "previous_release": documents[0]["release"],
        "repository": f"s3://mlites/repository/{name}",
        "sha256": digest_file(folders[1] / "model.onnx"),
        "model_digest": read_card(folders[1]).digest,
        "triton_url": triton.url,
        "grpc_url": triton.grpc,
        "previous_version": 1,
        "golden": {"samples": 10, "max_abs_difference": documents[1]["golden"]["max_abs_difference"], "agreement": 1.0},
        "reasons": [],
    }
    assert documents[1]["golden"]["max_abs_difference"] < 1e-5
    assert [document["previous_version"] for document in documents] == [None, 1, 2]
    assert ready(triton, name) == [2, 3]
    for version, seed in (("2", 2), ("3", 3), ("", 3)):
        np.testing.assert_allclose(ask(triton, name, golden, version), golden @ models.weight(seed), atol=1e-5)
    manifest = json.loads(served.get(f"repository/{name}/3/manifest.json"))
    assert manifest["files"]["model.onnx"] == {
        "sha256": digest_file(folders[2] / "model.onnx"),
        "size": (folders[2] / "model.onnx").stat().st_size,
    }


def test_the_model_in_service_keeps_its_number(
    served: Store, models: Any, golden: NDArray[np.float32], name: str
) -> None:
    for seed in (1, 2):
        deploy(served, models.folder(seed), name, SERVING, golden)
    keys = served.keys(f"repository/{name}")
    again = deploy(served, models.folder(2), name, SERVING, golden)
    assert (again["version"], again["previous_version"]) == (2, 1)
    assert served.keys(f"repository/{name}") == keys


def test_new_serving_options_are_another_release_and_reach_triton(
    served: Store, triton: Triton, models: Any, golden: NDArray[np.float32], name: str
) -> None:
    deploy(served, models.folder(1), name, SERVING, golden)
    options = SERVING.model_copy(update={"max_batch_size": 5, "max_queue_delay_us": 777, "instances": 2})
    assert deploy(served, models.folder(1), name, options, golden, threads=2)["version"] == 2
    with tritonclient.http.InferenceServerClient(triton.url.removeprefix("http://")) as client:
        config = client.get_model_config(name)
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] == 5
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 777
    assert (config["instance_group"][0]["count"], config["instance_group"][0]["kind"]) == (2, "KIND_CPU")
    assert config["version_policy"] == {"specific": {"versions": [1, 2]}}
    assert [sample["batch_size"] for sample in config["model_warmup"]] == [1, 5]
    values = {key: value["string_value"] for key, value in config["parameters"].items()}
    assert json.loads(values["classes"]) == ["cat", "dog", "ümlaut"]
    assert json.loads(values["preprocessing"])["scale"] == 1.0
    assert values["intra_op_thread_count"] == "2"


def test_a_model_with_other_classes_is_another_version(
    served: Store, models: Any, golden: NDArray[np.float32], name: str
) -> None:
    folder = models.folder(1)
    deploy(served, folder, name, SERVING, golden)
    card = dataclasses.replace(read_card(folder), classes=("x", "y", "z"))
    write_model_folder(folder, (folder / "model.onnx").read_bytes(), card)
    assert deploy(served, folder, name, SERVING, golden)["version"] == 2


def test_a_model_that_answers_otherwise_in_triton_never_reaches_the_repository(
    served: Store, triton: Triton, models: Any, golden: NDArray[np.float32], name: str
) -> None:
    deploy(served, models.folder(1), name, SERVING, golden)
    before = {key: served.get(key) for key in served.keys(f"repository/{name}")}
    with pytest.raises(PromotionFailed, match=rf"{name}@\w+ is not promoted: .* differs from the ONNX file by"):
        deploy(served, models.folder(2, last="RandomNormalLike"), name, SERVING, golden)
    assert {key: served.get(key) for key in served.keys(f"repository/{name}")} == before
    assert ready(triton, name) == [1]
    with tritonclient.http.InferenceServerClient(triton.url.removeprefix("http://")) as client:
        index = client.get_model_repository_index()
    assert not [one for one in index if one["name"].startswith(f"{name}-check") and one.get("state") == "READY"]


def test_a_load_that_fails_leaves_the_old_version_serving(
    served: Store, triton: Triton, models: Any, golden: NDArray[np.float32], name: str
) -> None:
    class Damaging(Interfered):
        def before(self) -> None:
            Store.put(self, f"repository/{name}/2/model.onnx", b"not a model")

    deploy(served, models.folder(1), name, SERVING, golden)
    config = served.get(f"repository/{name}/config.pbtxt")
    with pytest.raises(PromotionFailed) as caught:
        deploy(Damaging.open(served.uri), models.folder(2), name, SERVING, golden)
    assert " is not in service: load failed for model" in str(caught.value)
    assert str(caught.value).endswith("version 1 serves as before")
    assert served.get(f"repository/{name}/config.pbtxt") == config
    assert ready(triton, name) == [1]
    np.testing.assert_allclose(ask(triton, name, golden), golden @ models.weight(1), atol=1e-5)
    assert deploy(served, models.folder(2), name, SERVING, golden)["version"] == 3  # 2 is never used again


def test_a_first_load_that_fails_leaves_nothing_in_service(
    served: Store, triton: Triton, models: Any, golden: NDArray[np.float32], name: str
) -> None:
    class Damaging(Interfered):
        def before(self) -> None:
            self.delete(f"repository/{name}/1/model.onnx")

    with pytest.raises(PromotionFailed, match=r"is not in service: .*nothing was in service before"):
        deploy(Damaging.open(served.uri), models.folder(1), name, SERVING, golden)
    assert f"repository/{name}/config.pbtxt" not in served.keys(f"repository/{name}")
    assert ready(triton, name) == []


def test_a_half_written_version_is_neither_served_nor_used_again(
    served: Store, triton: Triton, models: Any, golden: NDArray[np.float32], name: str
) -> None:
    served.put(f"repository/{name}/7/model.onnx", b"half")
    assert deploy(served, models.folder(1), name, SERVING, golden)["version"] == 8
    assert served.get(f"repository/{name}/7/model.onnx") == b"half"
    assert ready(triton, name) == [8]


def test_a_version_that_was_damaged_in_the_store_is_made_anew(
    served: Store, models: Any, golden: NDArray[np.float32], name: str
) -> None:
    deploy(served, models.folder(1), name, SERVING, golden)
    served.put(f"repository/{name}/1/model.onnx", b"other bytes")
    assert deploy(served, models.folder(1), name, SERVING, golden)["version"] == 1
    assert served.get(f"repository/{name}/1/model.onnx") == models.onnx(1)


def test_a_restarted_triton_serves_what_was_deployed_in_spite_of_a_bad_neighbour(
    served: Store,
    triton: Triton,
    models: Any,
    golden: NDArray[np.float32],
    name: str,
    _home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deploy(served, models.folder(1), name, SERVING, golden)
    bad = served.get(f"repository/{name}/config.pbtxt").replace(name.encode(), f"{name}-bad".encode())
    served.put(f"repository/{name}-bad/config.pbtxt", bad)
    served.put(f"repository/{name}-bad/1/model.onnx", b"not a model")
    monkeypatch.setenv("MLITES_HOME", str(_home))
    process.stop(f"triton:{_home / 'stack'}")
    assert embedded.up()["MLITES_TRITON_URL"] == triton.url
    triton.wait_until_ready(name, 1)
    np.testing.assert_allclose(ask(triton, name, golden), golden @ models.weight(1), atol=1e-5)


def test_a_configuration_that_is_not_ours_is_left_alone(
    served: Store, models: Any, golden: NDArray[np.float32], name: str
) -> None:
    for text in ('platform: "tensorrt_plan"', "no configuration at all"):
        served.put(f"repository/{name}/config.pbtxt", text.encode())
        with pytest.raises(InputError, match=rf"{name}/config\.pbtxt was not written by mlites: .*; move it away"):
            deploy(served, models.folder(1), name, SERVING, golden)
        assert served.get(f"repository/{name}/config.pbtxt") == text.encode()


def test_only_onnx_with_fitting_golden_inputs_is_deployed(
    served: Store, models: Any, golden: NDArray[np.float32], name: str, tmp_path: Path
) -> None:
    folder = models.folder(1)
    for wrong in (golden[:0], golden[:, :3], golden.astype(np.float64)):
        with pytest.raises(InputError, match=r"rows must be float32 \(n, 4\) with n >= 1, got"):
            deploy(served, folder, name, SERVING, wrong)
    torch_card = dataclasses.replace(read_card(folder), form="torch")
    write_model_folder(tmp_path / "torch", b"weights", torch_card)
    with pytest.raises(InputError, match="a torch model; Triton serves ONNX: export it first"):
        deploy(served, tmp_path / "torch", name, SERVING, golden)
    assert served.keys(f"repository/{name}") == []


def test_without_triton_nothing_is_written(
    served: Store, models: Any, golden: NDArray[np.float32], name: str, triton: Triton
) -> None:
    for wrong, words in (
        (
            Triton("http://127.0.0.1:9", triton.grpc),
            "Triton at http://127.0.0.1:9 is not ready .* set MLITES_TRITON_URL",
        ),
        (Triton(triton.url, "127.0.0.1:9"), "Triton at 127.0.0.1:9 is not ready .* set MLITES_TRITON_GRPC"),
    ):
        with pytest.raises(InputError, match=words):
            deploy(served, models.folder(1), name, SERVING, golden, triton=wrong)
    assert served.keys(f"repository/{name}") == []


def test_a_declined_selection_says_why() -> None:
    selection: dict[str, Any] = {
        "selected": "small",
        "model": "d" * 64,
        "reason": "small is best but misses the budget",
        "candidates": [
            {"candidate": "big", "reasons": ["too big"]},
            {"candidate": "small", "reasons": ["p95 2 ms over"]},
        ],
    }
    document = declined(selection, "digits")
    assert (document["status"], document["version"], document["model"]) == ("rejected", None, "digits")
    assert document["reasons"] == ["p95 2 ms over"]
    selection["candidates"][1]["reasons"] = []
    assert declined(selection, "digits")["reasons"] == ["small is best but misses the budget"]


def test_an_unknown_model_is_refused_by_name(triton: Triton, name: str) -> None:
    with pytest.raises(TritonRefused, match=f"failed to load '{name}'|{name}"):
        triton.load(name)


def test_a_release_keeps_what_is_known_of_its_run() -> None:
    chosen = {
        "candidate": "small",
        "accuracy": 0.75,
        "latency_ms": {"p50": 1.0},
        "confusion": [[1, 1], [0, 2]],
        "classes": ["cat", "dog"],
    }
    facts = release_facts({"selected": "small", "candidates": [chosen]}, {"name": "pets"}, "d" * 64)
    assert facts["metrics"] == {"accuracy": 0.75, "latency_ms": {"p50": 1.0}}
    assert facts["reference"] == {"cat": 1, "dog": 3}
    assert facts["recipe"]["name"] == "pets" and facts["data_digest"] == "d" * 64
