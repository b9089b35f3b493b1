"""The commands that release, promote, roll back, list, compare and prune, with the real servers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from mlites.models.card import write_model_folder
from mlites.serving.sandbox import Sandbox, sandbox
from mlites.serving.signature import make_keys
from mlites.storage import Store
from pipelines import cli
from tests.serving import planted


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """One sandbox for all tests here."""
    with sandbox({}) as one:
        yield one


@pytest.fixture
def mlites(
    in_stack: dict[str, str], _home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, box: Sandbox
) -> Any:
    """Runs the command line in this process; what it printed and its exit code."""
    monkeypatch.setenv("MLITES_HOME", str(_home))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[str, str, int]:
        monkeypatch.setattr("sys.argv", ["mlites", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = int(error.code or 0)
        said = capsys.readouterr()
        return said.out, said.err, code

    monkeypatch.setenv("MLITES_SANDBOX_URL", box.triton.url)
    monkeypatch.setenv("MLITES_SANDBOX_GRPC", box.triton.grpc)
    return run


def test_a_release_goes_from_a_folder_to_production_and_back(mlites: Any, tmp_path: Path, in_stack: Any) -> None:
    rows = planted.rows()
    labels = planted.expected(1, rows).argmax(1)
    np.savez(tmp_path / "rows.npz", x=rows, y=labels)
    recipe = {
        "name": "one",
        "data": {"source": "npz", "path": "rows.npz"},
        "teacher": {"architecture": {"family": "mlp", "hidden": [8]}},
        "candidates": [{"name": "int8", "passes": [{"pass": "quantize"}]}],
        "serving": {"promotion": {"trial_seconds": 0.1, "shadow_seconds": 0, "watch_seconds": 0.1, "slower": 50}},
    }
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(recipe))
    name = f"cli-{tmp_path.name[-8:].strip('_').replace('_', '-')}"
    digests = []
    for seed in (1, 2):
        write_model_folder(tmp_path / f"model-{seed}", planted.onnx(seed), planted.card())
        out, err, code = mlites(
            "release", f"model-{seed}", "--name", name, "--data", "rows.npz", "--recipe", "one.yaml"
        )
        assert code == 0, err
        assert out.startswith(f"{name}@")
        digests.append(out.strip().split("@")[1])

    out, err, code = mlites("promote", f"{name}@{digests[0][:8]}", "--to", "production")
    assert code == 0, err
    assert out == f"production: {name}@{digests[0][:12]} is served as {name}, version 1\n"
    assert "tried:       32 golden rows" in err and "watched:" in err
    assert mlites("promote", name, "--to", "staging")[0].endswith(f"is served as {name}.staging, version 1\n")
    assert mlites("promote", f"{name}@staging", "--to", "production")[0].endswith(f"is served as {name}, version 2\n")
    assert mlites("rollback", name)[0] == f"production: {name}@{digests[0][:12]} is served as {name}, version 1\n"

    out, _, code = mlites("releases", name)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["release", "made", "accuracy", "KiB", "served"]
    assert any(line.startswith(digests[0][:12]) and line.endswith("production (version 1)") for line in lines)
    assert any(line.startswith(digests[1][:12]) and line.endswith("staging (version 1)") for line in lines)
    assert [line.split()[2:5] for line in lines if "production" in line and "rolled" in line] == [
        ["production", "rolled", "back"]
    ]
    known = json.loads(mlites("releases", name, "--json")[0])
    assert known["channels"]["production"]["digest"] == digests[0]
    assert len(known["history"]) == 4 and len(known["releases"]) == 2
    made = known["releases"][0]
    assert list(made["reference"].values()) == np.bincount(labels, minlength=len(planted.CLASSES)).tolist()
    assert made["metrics"] == {"accuracy": 1.0}  # labels are what the first model says

    out, _, code = mlites("diff", name, "production", digests[1])
    assert code == 0 and out.splitlines()[0] == f'digest: "{digests[0]}" -> "{digests[1]}"'
    assert "objects.model.onnx.sha256: " in out
    assert mlites("diff", name, "production", digests[0])[0] == f"both are {name}@{digests[0][:12]}\n"
    np.savez(tmp_path / "rows.npz", x=rows, y=labels + 1)
    _, err, code = mlites("release", "model-1", "--name", name, "--data", "rows.npz")
    assert code == 2 and "labels must be 0 to 3, as model-1 knows 4 classes, got 4" in err

    assert mlites("prune", name, "--keep", "1")[2] == 0
    assert mlites("prune", name, "--keep", "1")[0] == "nothing to remove\n"
    Store(in_stack["MLITES_STORE"]).put(f"repository/{name}/config.pbtxt", b"damaged by hand")
    out, _, code = mlites("settle")
    assert code == 0 and f"{name}/production.json: " in out.replace("channels/", "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("promote", "nobody", "--to", "production"),
            2,
            "error: nobody has no releases in s3://mlites; check the name",
        ),
        (
            ("promote", "nobody@staging", "--to", "production"),
            2,
            "error: staging of nobody has no release; see: mlites",
        ),
        (("promote", "nobody@abcdef", "--to", "production"), 2, "error: nobody@abcdef: no release begins with these"),
        (("promote", "nobody@abcdef"), 2, "Missing option '--to'"),
        (("rollback", "nobody"), 2, "error: production of nobody has no release; see: mlites releases nobody"),
        (("releases", "nobody"), 2, "error: nobody has no releases in s3://mlites; check the name"),
        (("diff", "nobody", "staging", "canary"), 2, "error: staging of nobody has no release"),
        (("prune", "nobody", "--keep", "0"), 2, "error: --keep must be at least 1, got 0"),
        (("sign", "nobody@abcdef"), 2, "error: nobody@abcdef: no release begins"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(mlites: Any, arguments: Any, code: int, message: str) -> None:
    out, err, found = mlites(*arguments)
    assert found == code and message in err and not out


def test_keys_sign_and_what_no_trusted_key_signed_is_exit_code_1(
    mlites: Any, tmp_path: Path, in_stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _, code = mlites("key", "secret")
    assert code == 0 and out == "secret signs (MLITES_SIGNING_KEY), secret.pub is trusted (MLITES_TRUSTED_KEYS)\n"
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert mlites("key", "secret")[1:] == ("error: secret exists; a key is not overwritten, name another file\n", 2)
    store = Store(in_stack["MLITES_STORE"])
    name = f"signed-{tmp_path.name[-8:].strip('_').replace('_', '-')}"
    digest = planted.good(store, name, tmp_path, 1).digest
    assert mlites("sign", name)[1].startswith("error: MLITES_SIGNING_KEY is not set")
    monkeypatch.setenv("MLITES_TRUSTED_KEYS", str(tmp_path / "secret.pub"))
    _, err, code = mlites("promote", name, "--to", "production")
    assert code == 1 and err.splitlines()[-1].startswith(f"error: {name}@{digest[:12]} is not loaded: ")
    assert err.splitlines()[-1].endswith("is not signed, and MLITES_TRUSTED_KEYS asks for it; sign it")
    monkeypatch.setenv("MLITES_SIGNING_KEY", str(tmp_path / "secret"))
    assert mlites("sign", name)[0] == f"{name}@{digest} is signed\n"
    for value, words in (
        ("nowhere.pub", "MLITES_TRUSTED_KEYS: cannot read nowhere.pub"),
        ("secret", "MLITES_TRUSTED_KEYS: secret is not a minisign public key"),
        (str(tmp_path / "empty"), "MLITES_TRUSTED_KEYS: no .pub file in"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        monkeypatch.setenv("MLITES_TRUSTED_KEYS", value)
        assert words in mlites("promote", name, "--to", "production")[1]
    make_keys(tmp_path / "other", tmp_path / "empty" / "other.pub")
    for value, words in (("nowhere", "cannot read nowhere"), ("secret.pub", "secret.pub cannot sign (")):
        monkeypatch.setenv("MLITES_SIGNING_KEY", value)
        assert words in mlites("sign", name)[1]


def test_every_command_says_what_it_does() -> None:
    for name in ("release", "sign", "key", "promote", "rollback", "releases", "diff", "prune", "settle"):
        result = CliRunner().invoke(cli.cli, [name, "--help"])
        assert result.exit_code == 0 and len(result.output.splitlines()) > 4
