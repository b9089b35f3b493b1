"""Commands that a reader can paste: ask the served model, take it back to the version before."""

import json
import shlex
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict

from mlites.report.summary import DeploymentSummary

LONGEST_LIST = 64  # means of more features than this are read from model.json instead of printed


class Signature(BaseModel):
    """What the served model takes, as data.json and model.json state it."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    input_shape: list[int]
    preprocessing: dict[str, Any]  # scale, mean, std

    @property
    def image(self) -> bool:
        return len(self.input_shape) == 3


def model_url(deployment: DeploymentSummary) -> str:
    """Address of the served version."""
    base = (deployment.triton_url or "").rstrip("/")
    return f"{base}/v2/models/{quote(deployment.model, errors='replace')}/versions/{deployment.version}"


def curl_call(deployment: DeploymentSummary, signature: Signature) -> str:
    """A shell command that sends one all-zero input."""
    count = 1
    for edge in signature.input_shape:
        count *= edge
    shape = json.dumps([1, *signature.input_shape])
    script = (
        "import json\n"
        f'print(json.dumps({{"inputs": [{{"name": "input", "shape": {shape}, "datatype": "FP32",\n'
        f'                              "data": [0.0] * {count}}}]}}))'
    )
    address = shlex.quote(model_url(deployment) + "/infer")
    return f"python3 -c {shlex.quote(script)} |\n  curl -s {address} -H 'Content-Type: application/json' -d @-\n"


def python_call(deployment: DeploymentSummary, signature: Signature, classes: list[str]) -> str:
    """A Python script that preprocesses one raw input, sends it and prints its class."""
    address = urlsplit(deployment.triton_url or "")
    scale, mean, std = (signature.preprocessing[key] for key in ("scale", "mean", "std"))
    shape = json.dumps([1, *signature.input_shape])
    across = json.dumps([1, -1, *[1] * (len(signature.input_shape) - 1)])
    secure = ", ssl=True" if address.scheme == "https" else ""
    place = address.netloc + address.path.rstrip("/")
    raw = f"uint8)  # your images: 0 to {1 / scale:g}, channels first" if signature.image else "float32)  # your rows"
    if len(mean) > LONGEST_LIST:
        reading = "import json\n\n"
        numbers = (
            'numbers = json.load(open("model.json"))["preprocessing"]  # from the model folder\n'
            'mean = np.array(numbers["mean"], np.float32)\nstd = np.array(numbers["std"], np.float32)\n'
        )
    else:
        reading = ""
        numbers = f"mean = np.array({json.dumps(mean)}, np.float32)\nstd = np.array({json.dumps(std)}, np.float32)\n"
    return (
        f"{reading}import numpy as np\nimport tritonclient.http as triton\n\n"
        f"classes = {json.dumps(classes, ensure_ascii=False)}\n{numbers}\n"
        f"raw = np.zeros({shape}, np.{raw}\n"
        f"batch = (raw.astype(np.float32) * np.float32({scale!r}) - mean.reshape({across})) / std.reshape({across})\n\n"
        f"client = triton.InferenceServerClient({json.dumps(place)}{secure})\n"
        'value = triton.InferInput("input", list(batch.shape), "FP32")\n'
        "value.set_data_from_numpy(batch)\n"
        f'answer = client.infer({json.dumps(deployment.model)}, [value], model_version="{deployment.version}")\n'
        'logits = answer.as_numpy("logits")  # float32, one row an input\n'
        "print([classes[index] for index in logits.argmax(axis=1)])\n"
    )


def rollback_commands(deployment: DeploymentSummary) -> str:
    """Shell commands that bring back the release before; where there is none, that stop serving."""
    if deployment.previous_release is None:
        base = (deployment.triton_url or "").rstrip("/")
        control = f"{base}/v2/repository/models/{quote(deployment.model, errors='replace')}"
        return f"curl -s -X POST {shlex.quote(control + '/unload')}\n"
    model = shlex.quote(deployment.model)
    return f"mlites releases {model}\nmlites rollback {model}\n"
