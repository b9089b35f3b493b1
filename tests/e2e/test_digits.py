"""The main job on the real servers: run, answer, run again from the cache."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from sklearn.datasets import load_digits

from tests.e2e.conftest import Workplace

SCHEMA = Path(__file__).parents[2] / "mlites" / "report" / "summary.schema.json"


@pytest.fixture(scope="module")
def summary(workplace: Workplace) -> dict[str, Any]:
    """What the first run of the default recipe ended with."""
    result = workplace.mlites("run", "digits")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "deployed" in result.stdout
    content: dict[str, Any] = json.loads((workplace.folder / "runs" / "latest" / "summary.json").read_text())
    return content


def test_the_summary_fits_its_schema_and_says_deployed(summary: dict[str, Any]) -> None:
    jsonschema.validate(summary, json.loads(SCHEMA.read_text()))
    assert summary["status"] == "deployed"
    assert len(summary["candidates"]) >= 6


def test_the_selected_candidate_keeps_98_percent_is_4x_faster_and_75_percent_smaller(summary: dict[str, Any]) -> None:
    best = next(one for one in summary["candidates"] if one["name"] == summary["selected"])
    assert best["accuracy"] >= 0.98 * summary["baseline"]["accuracy"]
    assert best["speedup"] >= 4
    assert best["size_bytes"] <= 0.25 * summary["baseline"]["size_bytes"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_served_version_reads_digits(summary: dict[str, Any], workplace: Workplace, protocol: str) -> None:
    served = summary["deployment"]
    client_module: Any = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
    address = served[{"http": "triton_url", "grpc": "grpc_url"}[protocol]].split("//")[-1]
    client = client_module.InferenceServerClient(address)
    details = json.loads((workplace.folder / "runs" / "latest" / "details.json").read_text())
    steps = details["signature"]["preprocessing"]
    images, labels = load_digits(return_X_y=True)
    (mean,), (std,) = steps["mean"], steps["std"]
    rows = ((images[:32].reshape(-1, 1, 8, 8) * steps["scale"] - mean) / std).astype(np.float32)
    classes = []
    for piece in np.split(rows, 4):  # the settings found may take 8 rows at most
        tensor = client_module.InferInput("input", piece.shape, "FP32")
        tensor.set_data_from_numpy(piece)
        answer = client.infer(served["model"], [tensor], model_version=str(served["version"]))
        classes += answer.as_numpy("logits").argmax(1).tolist()
    client.close()
    assert (np.array(classes) == labels[:32]).mean() >= 0.9


def test_the_settings_in_service_are_the_best_of_those_tried(summary: dict[str, Any], workplace: Workplace) -> None:
    sweep = summary["deployment"]["sweep"]
    assert len(sweep["settings"]) >= 3 and sweep["reason"].startswith("the highest throughput of")
    servers = workplace.servers()
    with tritonclient.http.InferenceServerClient(servers["MLITES_TRITON_URL"].removeprefix("http://")) as client:
        config = client.get_model_config(summary["deployment"]["model"])
    best = sweep["settings"][0]
    assert config["max_batch_size"] == best["max_batch_size"]
    assert config["instance_group"][0]["count"] == best["instances"]
    assert config["dynamic_batching"].get("max_queue_delay_microseconds", 0) == best["max_queue_delay_us"]
    assert config["parameters"]["intra_op_thread_count"]["string_value"] == str(best["threads"])
    page = (workplace.folder / "runs" / "latest" / "report.html").read_text()
    assert "Tried on a Triton without other callers" in page


def test_predict_reads_digits_and_watch_sees_it(summary: dict[str, Any], workplace: Workplace) -> None:
    images, labels = load_digits(return_X_y=True)
    np.savez(workplace.folder / "rows.npz", x=images[:200].reshape(-1, 8, 8).astype(np.uint8))
    asked = workplace.mlites("predict", "digits", "--input", "rows.npz", "--json", "--log-samples")
    assert asked.returncode == 0, asked.stderr
    answers = json.loads(asked.stdout)
    assert answers["version"] == summary["deployment"]["version"]
    named = np.array([int(row["class"]) for row in answers["rows"]])
    assert (named == labels[:200]).mean() >= 0.9
    seen = workplace.mlites("watch", "digits", "--once", "--json")
    assert seen.returncode == 0, seen.stdout + seen.stderr
    sight = json.loads(seen.stdout)
    assert sight["sampled"]["rows"] == 200 and sight["drift"]["psi"] < 0.2 and sight["alarms"] == []
    assert sight["served"]["requests"] > 0 and sight["served"]["failures"] == 0


def test_every_step_is_told_with_its_time(summary: dict[str, Any]) -> None:
    assert len(summary["steps"]) > 20
    assert all(step["seconds"] > 0 and not step["cached"] for step in summary["steps"])
    assert summary["overhead_seconds"] > 0


def test_the_report_stands_alone(summary: dict[str, Any], workplace: Workplace) -> None:
    folder = workplace.folder / "runs" / "latest"
    page = (folder / "report.html").read_text()
    assert "<script src" not in page and "<link" not in page
    assert all(one["name"] in page for one in summary["candidates"])
    assert {"summary.json", "report.html", "pipeline.yaml", "recipe.yaml", "run.log", "data-quality.html"} <= {
        path.name for path in folder.iterdir()
    }


def test_no_secret_is_in_any_file_of_the_run(summary: dict[str, Any], workplace: Workplace) -> None:
    keys = [
        word
        for path in (workplace.folder / ".mlites" / "stack").rglob("*")
        if path.is_file() and path.stat().st_mode & 0o777 == 0o600 and path.stat().st_size < 4096
        for word in path.read_text(errors="ignore").replace('"', " ").replace("=", " ").split()
        if len(word) >= 16 and word.isalnum() and not word.isupper()
    ]
    assert keys
    for path in (workplace.folder / "runs" / "latest").resolve().rglob("*"):
        text = path.read_text(errors="ignore")
        assert not any(key in text for key in keys), path


def test_the_same_run_again_comes_from_the_cache(summary: dict[str, Any], workplace: Workplace) -> None:
    result = workplace.mlites("run", "digits")
    assert result.returncode == 0, result.stdout + result.stderr
    again = json.loads((workplace.folder / "runs" / "latest" / "summary.json").read_text())
    assert again["run"] != summary["run"]
    ran = {step["name"] for step in again["steps"] if not step["cached"]}
    assert ran == {"embedded stack", "deploy", "report"}
    assert [one["model"] for one in again["candidates"]] == [one["model"] for one in summary["candidates"]]
    assert again["deployment"]["version"] == summary["deployment"]["version"]
