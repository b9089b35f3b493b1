"""Model folders reload to the same network, or are refused with one line."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

from mlites.compression.pruning.structured import prune_structured
from mlites.errors import InputError
from mlites.files import canonical_json, digest_bytes, digest_json
from mlites.models.build import build_model
from mlites.models.card import ModelCard, read_card, write_model_folder
from mlites.models.checkpoint import load_model, load_weights_, save_model
from mlites.models.factory import TRUSTED
from mlites.recipe import MLP, ResNet

CLASSES = tuple("abc")
RESNET = ResNet(family="resnet", depth=8, width=8)


def card_of(architecture: dict[str, Any], shape: tuple[int, ...] = (1, 8, 8)) -> ModelCard:
    return ModelCard(
        form="torch",
        architecture=architecture,
        input_shape=shape,
        classes=CLASSES,
        preprocessing={"scale": 1.0, "mean": [0.0], "std": [1.0]},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    module = build_model(RESNET, (1, 8, 8), 3, seed=1)
    save_model(tmp_path / "model", module, card_of(RESNET.model_dump(mode="json")))
    return tmp_path / "model"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Alter the card as an attacker would: with a digest that fits."""
    card = json.loads((folder / "model.json").read_bytes())
    del card["digest"]
    change(card)
    card["digest"] = digest_json(card)
    (folder / "model.json").write_bytes(canonical_json(card))


def test_reload_gives_the_same_answers_and_the_same_card(tmp_path: Path) -> None:
    module = build_model(RESNET, (1, 8, 8), 3, seed=1).eval()
    card = save_model(tmp_path / "model", module, card_of(RESNET.model_dump(mode="json")))
    again, read = load_model(tmp_path / "model")
    rows = torch.randn(5, 1, 8, 8)
    assert torch.equal(again(rows), module(rows))
    assert read == card and not again.training and card.layers == {}


def test_equal_models_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        module = build_model(MLP(family="mlp", hidden=(4,)), (6,), 3, seed=5)
        save_model(tmp_path / name, module, card_of({"family": "mlp", "hidden": [4]}, (6,)))
    for file in ("model.safetensors", "model.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_pruned_model_reloads_in_a_fresh_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build_model(RESNET, (1, 8, 8), 3, seed=1).eval()
    pruned, _ = prune_structured(module, (1, 8, 8), 0.5, round_to=2)
    card = save_model(tmp_path / "model", pruned, card_of(RESNET.model_dump(mode="json")))
    assert card.layers["stem"] == {"kind": "conv2d", "in": 1, "out": 4, "groups": 1}
    rows = torch.randn(4, 1, 8, 8)
    (tmp_path / "rows").write_bytes(save({"rows": rows, "logits": pruned(rows).detach()}))
    program = (
        "import sys, torch; from pathlib import Path; from safetensors.torch import load_file\n"
        "from mlites.models.checkpoint import load_model\n"
        "module, _ = load_model(Path('model')); kept = load_file('rows')\n"
        "torch.set_num_threads(1)\n"
        "print(torch.equal(module(kept['rows']), kept['logits']), 'torch_pruning' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == "True False", done.stdout


def test_card_is_read_without_torch(saved: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from mlites.models.card import read_card\n"
        f"read_card(Path({str(saved)!r})); print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_any_flipped_byte_is_noticed(saved: Path) -> None:
    for name in ("model.safetensors", "model.json"):
        whole = (saved / name).read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 23)):
            (saved / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(InputError):
                load_model(saved)
        (saved / name).write_bytes(whole)
    load_model(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(format="mlites-model/9"),
            "format is 'mlites-model/9'; expected a model card (mlites-model/1)",
        ),
        (lambda c: c.pop("classes"), "classes: field required"),
        (lambda c: c.update(extra=1), "extra: unexpected keyword argument"),
        (lambda c: c.update(input_shape=[1, 0, 8]), "input_shape.1: input should be greater than or equal to 1"),
        (lambda c: c.update(input_shape=[1 << 20, 1 << 20, 1]), "has more than 2**26 values"),
        (lambda c: c.update(files={"../model.safetensors": "0" * 64}), "files must name model.safetensors alone"),
        (lambda c: c.update(form="onnx"), "files must name model.onnx alone"),
        (lambda c: c["architecture"].update(family="vit"), "efficientnet, factory, got 'vit'"),
        (lambda c: c["architecture"].update(depth=9), "depth must be 6n + 2"),
        (lambda c: c["architecture"].update(depth="deep"), "architecture.depth"),
        (lambda c: c["architecture"].update(width=16), "the architecture wants"),
        (lambda c: c["architecture"].update(depth=14), "the architecture wants"),
        (lambda c: c.update(classes=list("abcd")), "output.bias has shape (3,), the architecture wants (4,)"),
        (lambda c: c.update(input_shape=[64]), "resnet needs images"),
        (
            lambda c: c["layers"].update(stem={"kind": "conv2d", "in": 1, "out": 1 << 40, "groups": 1}),
            "out must be 1 to",
        ),
        (lambda c: c["layers"].update(stem={"kind": "conv2d", "in": 1, "out": True, "groups": 1}), "out must be 1 to"),
        (lambda c: c["layers"].update(stem={"kind": "conv2d", "in": 1, "out": 4}), "sizes must be in, out, groups"),
        (lambda c: c["layers"].update(stem={"kind": "conv2d", "in": 1, "out": 8, "groups": 3}), "do not divide"),
        (lambda c: c["layers"].update(stem={"kind": "linear", "in": 1, "out": 8}), "is Conv2d in the architecture"),
        (lambda c: c["layers"].update(stem={"kind": "spline"}), "kind must be one of linear"),
        (lambda c: c["layers"].update(trunk={"kind": "linear", "in": 1, "out": 8}), "is not part of the architecture"),
        (lambda c: c["layers"].update(norm={"kind": "batchnorm2d", "features": 1 << 20}), "the architecture wants"),
    ],
)
def test_altered_card_is_refused_in_one_line(
    saved: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewrite(saved, change)
    with pytest.raises(InputError) as caught:
        load_model(saved)
    assert message in str(caught.value) and str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_card_that_is_no_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the model card: No such file"):
        read_card(tmp_path)
    for content in (b"", b"\xff", b"[1]", b'{"format":"mlites-model/1"}', b"[" * 100_000, b"nul"):
        (tmp_path / "model.json").write_bytes(content)
        with pytest.raises(InputError):
            read_card(tmp_path)


def test_missing_weights_are_named(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot read the model: No such file"):
        load_model(saved)


def replace_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    content = save(state)
    (folder / "model.safetensors").write_bytes(content)
    rewrite(folder, lambda card: card.update(files={"model.safetensors": digest_bytes(content)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("stem.weight"), "lacks stem.weight, which the architecture has"),
        (lambda s: s.update(more=torch.zeros(1)), "holds more, which the architecture does not have"),
        (lambda s: s.update({"stem.weight": torch.zeros(2)}), "stem.weight has shape (2,), the architecture wants"),
        (lambda s: s["stem.weight"].fill_(float("nan")), "stem.weight holds NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    saved: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    replace_weights(saved, change)
    with pytest.raises(InputError) as caught:
        load_model(saved)
    assert message in str(caught.value)


def test_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"\x80\x04pickle")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_weights_(nn.Linear(2, 2), tmp_path / "weights")


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(save({"weight": torch.ones(2, 2).half(), "bias": torch.ones(2).half()}))
    layer = nn.Linear(2, 2)
    load_weights_(layer, tmp_path / "weights")
    assert layer.weight.dtype == torch.float32 and torch.equal(layer.weight, torch.ones(2, 2))


def test_onnx_folder_does_not_load_as_a_network(tmp_path: Path) -> None:
    card = dataclasses.replace(card_of({"family": "mlp", "hidden": [4]}, (6,)), form="onnx")
    write_model_folder(tmp_path / "model", b"onnx", card)
    assert read_card(tmp_path / "model").form == "onnx"
    with pytest.raises(InputError, match="holds an ONNX model, which no longer trains"):
        load_model(tmp_path / "model")


def test_size_of_a_kind_that_is_not_recorded_is_refused_on_saving(tmp_path: Path) -> None:
    module = build_model(MLP(family="mlp", hidden=(4,)), (6,), 3)
    module.register_buffer("more", torch.zeros(3))
    with pytest.raises(ValueError, match=r"more has shape \(3,\), a reloaded model would have None"):
        save_model(tmp_path / "model", module, card_of({"family": "mlp", "hidden": [4]}, (6,)))
    assert not (tmp_path / "model").exists()


def test_failed_write_leaves_the_old_model(saved: Path) -> None:
    before = read_card(saved).digest
    with pytest.raises(ValueError, match="Out of range float"):
        write_model_folder(saved, b"x", dataclasses.replace(read_card(saved), preprocessing={"scale": float("nan")}))
    assert read_card(saved).digest == before and [path.name for path in saved.parent.iterdir()] == ["model"]


def test_child_names_parent_and_extends_the_provenance(saved: Path) -> None:
    parent = read_card(saved)
    child = parent.after(
        "prune", options={"amount": 0.5}, data="d", metrics={"macs": 1}, seed=3, history=[{"epoch": 1}]
    )
    grandchild = dataclasses.replace(child, digest="f" * 64).after("export", options={}, data="d", metrics={})
    assert child.parents == (parent.digest,) and grandchild.parents == ("f" * 64,)
    assert [entry["step"] for entry in grandchild.provenance] == ["prune", "export"]
    assert grandchild.provenance[0]["seed"] == 3 and "seed" not in grandchild.provenance[1]


def tiny_factory(width: int) -> nn.Module:
    """A user's network: one parameter of its own, tied weights, and a buffer that is not saved."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 3))
    module[3].weight = nn.Parameter(torch.eye(width))
    module.register_buffer("scale", torch.full((1,), 2.0), persistent=False)
    return module


def broken_factory() -> nn.Module:
    raise RuntimeError("no weights\nfor you")


def not_a_module() -> str:
    return "network"


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "a_users_package", sys.modules[__name__])
    names = ("tiny_factory", "broken_factory", "not_a_module", "missing")
    monkeypatch.setenv(TRUSTED, ", ".join(f"a_users_package:{name}" for name in names))
    return "a_users_package:tiny_factory"


def test_users_factory_reloads_with_its_unsaved_buffers(tmp_path: Path, importable: str) -> None:
    architecture = {"family": "factory", "factory": importable, "options": {"width": 8}}
    module = build_model(architecture, (1, 8, 8), 3, seed=2).eval()
    pruned, _ = prune_structured(module, (1, 8, 8), 0.5, round_to=1)
    save_model(tmp_path / "model", pruned, card_of(architecture))
    again, _ = load_model(tmp_path / "model")
    rows = torch.randn(5, 1, 8, 8)
    assert torch.equal(again(rows), pruned(rows)) and torch.equal(again.get_buffer("scale"), torch.full((1,), 2.0))


def test_untrusted_factory_is_never_imported(tmp_path: Path, importable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = {"family": "factory", "factory": importable, "options": {"width": 8}}
    save_model(tmp_path / "model", build_model(architecture, (1, 8, 8), 3), card_of(architecture))
    monkeypatch.setenv(TRUSTED, "other:fn")
    with pytest.raises(InputError, match=f"is not trusted; to let its code run, list it in {TRUSTED}"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("broken_factory", {}, "RuntimeError: no weights$"),
        ("not_a_module", {}, "returned str; it must return a torch.nn.Module"),
        ("missing", {}, "AttributeError"),
        ("tiny_factory", {"depth": 3}, "TypeError: .*unexpected keyword argument 'depth'"),
    ],
)
def test_failing_factory_is_one_line(importable: str, name: str, options: dict[str, Any], message: str) -> None:
    architecture = {"family": "factory", "factory": f"a_users_package:{name}", "options": options}
    with pytest.raises(InputError, match=message):
        build_model(architecture, (1, 8, 8), 3)
    with pytest.raises(InputError, match=r"needs factory: package\.module:function"):
        build_model({"family": "factory", "factory": 3}, (1, 8, 8), 3)
