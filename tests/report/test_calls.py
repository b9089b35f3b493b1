import ast
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest

from mlites.data.dataset import Preprocessing
from mlites.report.calls import Signature, curl_call, python_call, rollback_commands
from mlites.report.summary import DeploymentSummary

DEPLOYED = DeploymentSummary(
    model="digits", version=3, previous_version=2, previous_release="5" * 64, triton_url="http://127.0.0.1:8000/",
)  # fmt: skip
IMAGE = Signature(input_shape=[3, 4, 4], preprocessing={"scale": 1 / 255, "mean": [0.1, 0.2, 0.3], "std": [0.5, 1, 2]})
TABLE = Signature(input_shape=[2], preprocessing={"scale": 1.0, "mean": [5.0, -1.0], "std": [2.0, 3.0]})


@pytest.mark.parametrize("signature", [IMAGE, TABLE])
def test_python_example_preprocesses_as_the_library_does(signature):
    script = python_call(DEPLOYED, signature, ["cat", "it's", '"dog"'])
    tree = ast.parse(script)
    before = [node for node in tree.body if "tritonclient" not in ast.unparse(node)]
    stop = next(index for index, node in enumerate(before) if ast.unparse(node).startswith("client ="))
    names: dict = {}
    exec(compile(ast.Module(before[:stop], []), "example", "exec"), names)
    raw = names["raw"]
    assert raw.dtype == (np.uint8 if signature is IMAGE else np.float32)
    assert names["batch"].dtype == np.float32 and names["batch"].shape == (1, *signature.input_shape)
    np.testing.assert_allclose(
        names["batch"], Preprocessing.from_json(signature.preprocessing).apply(raw), rtol=1e-6, atol=1e-7
    )
    assert names["classes"] == ["cat", "it's", '"dog"']


def test_python_example_names_tensors_version_and_address():
    script = python_call(DEPLOYED, IMAGE, ["a", "b"])
    assert 'InferenceServerClient("127.0.0.1:8000")' in script and 'model_version="3"' in script
    assert 'InferInput("input", list(batch.shape), "FP32")' in script and 'as_numpy("logits")' in script


def test_python_example_speaks_tls_where_triton_does():
    script = python_call(DEPLOYED.model_copy(update={"triton_url": "https://triton.example/edge"}), IMAGE, ["a", "b"])
    assert 'InferenceServerClient("triton.example/edge", ssl=True)' in script


def test_long_lists_of_means_are_read_from_the_model():
    wide = Signature(input_shape=[500], preprocessing={"scale": 1.0, "mean": [0.0] * 500, "std": [1.0] * 500})
    script = python_call(DEPLOYED, wide, ["a", "b"])
    ast.parse(script)
    assert 'json.load(open("model.json"))["preprocessing"]' in script and len(script) < 1500


def test_shell_example_sends_one_input_of_the_right_shape():
    first, second = curl_call(DEPLOYED, IMAGE).split(" |\n")
    python, option, script = shlex.split(first)
    assert (python, option) == ("python3", "-c")
    body = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert body["inputs"][0] | {"data": None} == {
        "name": "input", "shape": [1, 3, 4, 4], "datatype": "FP32", "data": None,
    }  # fmt: skip
    assert len(body["inputs"][0]["data"]) == 48
    assert "http://127.0.0.1:8000/v2/models/digits/versions/3/infer" in shlex.split(second)


@pytest.mark.parametrize("name", ["a b; rm -rf ~", "$(reboot)", "x'y"])
def test_hostile_names_stay_one_word_of_the_shell(name):
    hostile = DEPLOYED.model_copy(update={"model": name, "repository": f"s3://b/{name}"})
    words = shlex.split(curl_call(hostile, TABLE).split(" |\n")[1])
    assert len(words) == 7 and words[2].startswith("http://127.0.0.1:8000/v2/models/")
    assert [shlex.split(line) for line in rollback_commands(hostile).splitlines()] == [
        ["mlites", "releases", name],
        ["mlites", "rollback", name],
    ]


def test_what_has_nothing_before_it_can_only_be_stopped():
    first = DEPLOYED.model_copy(update={"previous_release": None})
    assert rollback_commands(first) == "curl -s -X POST http://127.0.0.1:8000/v2/repository/models/digits/unload\n"
