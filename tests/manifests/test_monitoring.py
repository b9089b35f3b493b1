"""Dashboard and rules speak of metrics that a Triton has."""

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import tritonclient.http
from onnx import TensorProto, helper

from tests.manifests.overlays import MANIFESTS, named

KUBE_STATE = {"kube_deployment_status_replicas_available", "kube_deployment_spec_replicas"}
SUMMARY = "nv_inference_request_summary_us"  # where Triton is asked for it
RECORDED = "mlites_triton_queue_microseconds"


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's sidecar finds it."""
    config = named("production", "ConfigMap", "mlites-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    content: dict[str, Any] = json.loads(config["data"]["dashboard.json"])
    return content


def queries() -> list[str]:
    """Every query of the dashboard, of the rules, and of the alerts."""
    board = dashboard()
    rules = named("production", "PrometheusRule", "mlites-triton")["spec"]["groups"][0]["rules"]
    return [
        *(target["expr"] for panel in board["panels"] for target in panel["targets"]),
        *(one["expr"] for one in board["annotations"]["list"]),
        *(rule["expr"] for rule in rules),
    ]


def metrics(query: str) -> set[str]:
    """Names of metrics in a query."""
    plain = re.sub(r'"[^"]*"', "", query)
    return set(re.findall(r"\b(?:nv|kube|mlites)_[a-z_]+", plain))


def test_the_dashboard_shows_latency_queue_errors_and_versions() -> None:
    board = dashboard()
    titles = " ".join(panel["title"] for panel in board["panels"])
    for word in ("Latency", "Queue", "Errors", "Versions"):
        assert word in titles
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    names = {one["name"] for one in board["templating"]["list"]}
    for query in queries():
        assert set(re.findall(r"\$(\w+)", query)) <= names | {"labels"}
    spots = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(spots)) == len(spots)


def network() -> bytes:
    """The smallest model: minus its input."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("input", "logits")]
    graph = helper.make_graph([helper.make_node("Neg", ["input"], ["logits"])], "neg", values[:1], values[1:])
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    return content


def test_every_metric_is_one_that_triton_gives(stack: dict[str, str], _home: Path) -> None:
    config = {
        "backend": "onnxruntime",
        "max_batch_size": 4,
        "input": [{"name": "input", "data_type": "TYPE_FP32", "dims": [3]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [3]}],
        "dynamic_batching": {},
    }
    port = json.loads((_home / "stack" / "servers.json").read_text())["triton"]["ports"]["metrics"]
    with tritonclient.http.InferenceServerClient(stack["MLITES_TRITON_URL"].removeprefix("http://")) as client:
        client.load_model("monitored", config=json.dumps(config), files={"file:1/model.onnx": network()})
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        finally:
            client.unload_model("monitored")
    known = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    used = {name for query in queries() for name in metrics(query)} - KUBE_STATE - {RECORDED, SUMMARY}
    assert {name for name in used if name not in known} == set()
    assert "summary_latencies=true" in (MANIFESTS.parent / "docker" / "triton.sh").read_text(), f"{SUMMARY} needs it"
