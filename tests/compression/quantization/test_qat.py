"""Quantization-aware training ends in the file that it trained: same places, same ranges, same answers."""

import collections
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from mlites.compression.pruning.magnitude import prune_magnitude, zero_masks
from mlites.compression.quantization.fake_quantization import activation_scale, weight_scale
from mlites.compression.quantization.qat import _check_parity, train_quantized
from mlites.compression.quantization.qdq_export import find_places, write_learned_
from mlites.compression.quantization.quantized_network import QuantizedNetwork
from mlites.compression.quantization.scheme import prepare
from mlites.compression.quantization.static import quantize_static_int8
from mlites.errors import InputError, ParityError
from mlites.export import answers, export_onnx
from mlites.models.build import build_model
from mlites.recipe import QAT, Training
from mlites.training.loop import TrainingData, evaluate, train
from tests.compression.users_networks import Inception, Patches

ROOT = Path(__file__).parents[3]
SHAPE = (1, 8, 8)
BRIEF = Training(epochs=2, batch_size=32, precision="fp32", learning_rate=0.01)


class Narrow(nn.Module):
    """Depthwise convolutions, clipped rectifiers and hard swish."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
        layers += [nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
        layers += [nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish()]
        self.features, self.head = nn.Sequential(*layers), nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(inputs).mean((2, 3)))
        return logits


class Largest(nn.Module):
    """Keeps the largest numbers, in a layer of its own."""

    class Picker(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.flatten(1).topk(9).values

    def __init__(self) -> None:
        super().__init__()
        self.reader = nn.ModuleDict({"picker": Largest.Picker()})
        self.head = nn.Linear(9, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.reader["picker"](inputs))
        return logits


def resnet() -> nn.Module:
    return build_model({"family": "resnet", "depth": 8, "width": 8}, SHAPE, 3, 0)


def mlp() -> nn.Module:
    return build_model({"family": "mlp", "hidden": [32]}, SHAPE, 3, 0)


def make_data() -> TrainingData:
    generator = np.random.default_rng(0)
    patterns = generator.normal(size=(3, *SHAPE))

    def rows(count: int) -> tuple[Tensor, Tensor]:
        labels = np.arange(count) % 3
        inputs = patterns[labels] * 0.7 + generator.normal(size=(count, *SHAPE)) * 1.2
        return torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(labels)

    return TrainingData(*rows(192), *rows(300))


def taught(build: type[nn.Module] | None = None) -> nn.Module:
    """The same network whenever and wherever it is asked for."""
    torch.manual_seed(0)
    module = build() if build else resnet()
    options = Training(epochs=3, batch_size=32, precision="fp32", optimizer="adamw", learning_rate=5e-3)
    train(module, make_data(), options, 0, report=lambda _: None)
    return module


def qat(**options: object) -> QAT:
    return QAT.model_validate({"pass": "qat", "training": BRIEF, "reduce_range": False, **options})


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def integers(model: onnx.ModelProto) -> list[np.ndarray]:
    """The int8 weights."""
    return [values for values in constants(model).values() if values.dtype == np.int8 and values.ndim > 1]


def kernels(model: onnx.ModelProto, folder: Path) -> collections.Counter[str]:
    """What ONNX Runtime runs, after it has fused what it can."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return make_data()


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return taught()


@pytest.fixture(scope="module")
def prepared(teacher: nn.Module) -> onnx.ModelProto:
    return prepare(export_onnx(teacher, SHAPE))


@pytest.fixture(scope="module")
def trained(teacher: nn.Module, data: TrainingData) -> tuple[onnx.ModelProto, list, dict]:
    return train_quantized(teacher, data, qat(), 0, input_shape=SHAPE)


@pytest.mark.parametrize(
    ("build", "per_channel"),
    [(resnet, True), (mlp, True), (Narrow, False), (Inception, True), (Patches, True)],
)
def test_file_answers_as_trained_and_runs_the_kernels_of_static_quantization(
    build: type[nn.Module], per_channel: bool, data: TrainingData, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = build().eval()
    brief = BRIEF.model_copy(update={"epochs": 1})
    model, history, facts = train_quantized(
        module, data, qat(per_channel=per_channel, training=brief), 0, input_shape=SHAPE
    )
    static = quantize_static_int8(export_onnx(module, SHAPE), data.inputs.numpy(), per_channel=per_channel)
    assert kernels(model, tmp_path) == kernels(static, tmp_path)
    assert facts["agreement"] > 0.95 and facts["mean_steps_apart"] < 1
    assert facts["simulated_validation_accuracy"] == pytest.approx(facts["validation_accuracy"], abs=0.02)
    assert facts["size_bytes"] == model.ByteSize() and len(history) == 1


def test_facts_are_the_accuracies_and_sizes(
    teacher: nn.Module, data: TrainingData, trained: tuple[onnx.ModelProto, list, dict]
) -> None:
    model, history, facts = trained
    found = (answers(model, data.validation_inputs.numpy()).argmax(1) == data.validation_labels.numpy()).mean()
    assert facts["validation_accuracy"] == found
    assert facts["float_validation_accuracy"] == evaluate(teacher, data.validation_inputs, data.validation_labels)[0]
    assert facts["simulated_validation_accuracy"] == history[-1]["validation_accuracy"]
    assert facts["size_bytes"] < facts["float_size_bytes"] / 2 and facts["weight_bits"] == 8
    assert found > facts["float_validation_accuracy"] - 0.03


@pytest.mark.parametrize("per_channel", [True, False])
def test_exported_scales_are_the_learned_ones(
    teacher: nn.Module, prepared: onnx.ModelProto, data: TrainingData, per_channel: bool
) -> None:
    quantized = quantize_static_int8(prepared, data.inputs.numpy(), per_channel=per_channel)
    before, places = constants(quantized), find_places(quantized, prepared)
    network = QuantizedNetwork(prepared, teacher, places, data.inputs.numpy(), 127, 12)
    train(network, data, BRIEF, 0, report=lambda _: None)
    learned = network.learned_tensors()
    write_learned_(quantized, places, network.learned_ranges(), learned, 127)
    after = constants(quantized)
    for name, quantizer in network.ranges.items():
        scale, zero_point = activation_scale(quantizer.low, quantizer.high)
        pair = places.activations[name]
        assert after[pair.scale] == scale.numpy() and after[pair.zero_point] == zero_point.numpy()
        assert after[pair.scale] != before[pair.scale]
    for name, stored in places.weights.items():
        assert np.array_equal(after[stored.scale], weight_scale(learned[name], stored.axis, 127).numpy())
        assert (after[stored.scale].size > 1) == per_channel
        values = after[f"{name}_quantized"]
        assert np.abs(values).max() == 127 and not after[stored.zero_point].any()
    for name, bias in places.biases.items():
        step = after[places.activations[bias.source].scale] * after[places.weights[bias.weight].scale]
        assert np.allclose(after[bias.stored.scale], step, rtol=1e-6)
        assert np.allclose(after[f"{name}_quantized"] * step, learned[name], atol=float(step.max()))


def test_the_graph_before_training_is_static_quantization(
    teacher: nn.Module, prepared: onnx.ModelProto, data: TrainingData
) -> None:
    """The ranges start where calibration left them, so the first answers are those of the static file."""
    static = quantize_static_int8(prepared, data.inputs.numpy())
    places = find_places(static, prepared)
    network = QuantizedNetwork(prepared, teacher, places, data.inputs.numpy(), 127, 12).eval()
    with torch.no_grad():
        simulated = network(data.validation_inputs).numpy()
    steps = (
        np.abs(simulated - answers(static, data.validation_inputs.numpy())) / places.activations["logits"].high * 255
    )
    assert steps.mean() < 0.5


def test_training_leaves_the_module_as_it_was(data: TrainingData) -> None:
    module = taught(Narrow).train()
    before = {name: values.clone() for name, values in module.state_dict().items()}
    train_quantized(module, data, qat(), 0, input_shape=SHAPE)
    assert module.training
    assert all(torch.equal(values, before[name]) for name, values in module.state_dict().items())


def test_reduced_range_keeps_weights_within_seven_bits(teacher: nn.Module, data: TrainingData) -> None:
    model, _, facts = train_quantized(teacher, data, qat(reduce_range=True), 0, input_shape=SHAPE)
    assert {np.abs(values).max() for values in integers(model)} == {64}
    assert facts["weight_bits"] == 7


def test_pruned_weights_are_zero_in_the_files_integers(teacher: nn.Module, data: TrainingData) -> None:
    pruned, _ = prune_magnitude(teacher, 0.7)
    options = qat(training=BRIEF.model_copy(update={"epochs": 1}))
    model, _, _ = train_quantized(pruned, data, options, 0, input_shape=SHAPE, keep_zeros=True)
    masks = {tuple(mask.shape): [] for mask in zero_masks(pruned).values()}
    for mask in zero_masks(pruned).values():
        masks[tuple(mask.shape)].append(mask.numpy())
    weights = integers(model)
    assert len(weights) == sum(map(len, masks.values())) == 10
    for values in weights:
        assert any(not values[~mask].any() for mask in masks[values.shape])
    assert sum(int((values == 0).sum()) for values in weights) / sum(values.size for values in weights) >= 0.7


class Depthwise(nn.Module):
    """A depthwise convolution between two others, all normalized."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        layers += [nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        layers += [nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        self.features, self.head = nn.Sequential(*layers), nn.Linear(256, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(inputs).flatten(1))
        return logits


def test_training_recovers_what_one_scale_a_weight_costs(data: TrainingData) -> None:
    """Channels of a depthwise network grow up to 60-fold and shrink as much, which changes none of its answers."""
    torch.manual_seed(0)
    module = Depthwise()
    train(module, data, Training(epochs=20, batch_size=32, precision="fp32"), 0, report=lambda _: None)
    logits = module(data.validation_inputs)
    factor = torch.logspace(-1.8, 1.8, 16)[torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        module.features[4].weight.mul_(factor), module.features[4].bias.mul_(factor)
        module.features[6].weight.div_(factor.reshape(1, -1, 1, 1))
    assert torch.allclose(module(data.validation_inputs), logits, rtol=1e-3, atol=1e-3)
    labels = data.validation_labels.numpy()
    static = quantize_static_int8(export_onnx(module, SHAPE), data.inputs.numpy(), per_channel=False)
    after_static = (answers(static, data.validation_inputs.numpy()).argmax(1) == labels).mean()
    training = BRIEF.model_copy(update={"epochs": 12, "learning_rate": 0.05})
    _, _, facts = train_quantized(module, data, qat(per_channel=False, training=training), 0, input_shape=SHAPE)
    lost = facts["float_validation_accuracy"] - after_static
    assert lost > 0.05
    assert facts["float_validation_accuracy"] - facts["validation_accuracy"] < lost / 2


def test_a_killed_run_resumes_to_the_same_bytes(
    data: TrainingData, trained: tuple[onnx.ModelProto, list, dict], tmp_path: Path
) -> None:
    code = (
        "import sys; from tests.compression.quantization import test_qat as own\n"
        "own.train_quantized(own.taught(), own.make_data(), own.qat(), 0, input_shape=own.SHAPE,\n"
        "    checkpoint=own.Path(sys.argv[1]))"
    )
    checkpoint = tmp_path / "checkpoint"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(checkpoint)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.kill()
    assert line.startswith("epoch 1/2") and checkpoint.exists()
    resumed, history, _ = train_quantized(taught(), data, qat(), 0, input_shape=SHAPE, checkpoint=checkpoint)
    assert resumed.SerializeToString(deterministic=True) == trained[0].SerializeToString(deterministic=True)
    assert history == trained[1]


def test_file_answers_alike_in_a_fresh_process(
    data: TrainingData, trained: tuple[onnx.ModelProto, list, dict], tmp_path: Path
) -> None:
    onnx.save(trained[0], tmp_path / "model.onnx")
    code = (
        "import numpy as np, onnx; from mlites.export import answers\n"
        "np.save('logits.npy', answers(onnx.load('model.onnx'), np.load('rows.npy')))"
    )
    np.save(tmp_path / "rows.npy", data.validation_inputs.numpy())
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert np.array_equal(np.load(tmp_path / "logits.npy"), answers(trained[0], data.validation_inputs.numpy()))


def test_frozen_embedded_constants_do_not_train(data: TrainingData) -> None:
    """Buffers and parameters without gradient keep their values; equal biases train apart."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mixing", torch.linspace(-1, 1, 64 * 16).reshape(64, 16))
            self.frozen = nn.Parameter(torch.linspace(-1, 2, 16 * 12).reshape(16, 12), requires_grad=False)
            self.hidden = nn.ModuleList(nn.Linear(12, 12) for _ in range(2))
            self.head = nn.Linear(12, 3)
            for one in self.hidden:
                nn.init.constant_(one.bias, 0.1)

        def forward(self, inputs: Tensor) -> Tensor:
            values = inputs.flatten(1) @ self.mixing @ self.frozen
            for one in self.hidden:
                values = one(values).relu()
            logits: Tensor = self.head(values)
            return logits

    module = Fixed()
    model, _, _ = train_quantized(module, data, qat(), 0, input_shape=SHAPE)
    stored = {values.shape: values for values in integers(model)}
    for fixed in (module.mixing, module.frozen):
        scale = np.abs(fixed.numpy()).max(0) / 127
        assert np.array_equal(stored[tuple(fixed.shape)], np.round(fixed.numpy() / scale))
    stored_biases = [values for values in constants(model).values() if values.dtype == np.int32]
    biases = [values for values in stored_biases if values.shape == (12,) and values.any()]  # zero points are not
    assert len(biases) == 2 and len({tuple(values.tolist()) for values in biases}) == 2


def test_an_operator_without_gradient_is_refused_with_its_layer(data: TrainingData) -> None:
    with pytest.raises(InputError, match=r"no gradient of TopK in layer 'reader.picker'; use quantize, method: static"):
        train_quantized(Largest().eval(), data, qat(), 0, input_shape=SHAPE)


def test_a_network_that_does_not_export_is_refused(data: TrainingData) -> None:
    class Counting(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.flatten(1)[:, : 3 if float(inputs.sum()) > 0 else 2]

    with pytest.raises(InputError, match="cannot be exported to ONNX"):
        train_quantized(Counting(), data, qat(), 0, input_shape=SHAPE)


def test_a_file_that_answers_otherwise_is_refused() -> None:
    expected = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    step = 0.02
    near = expected + step * np.sign(expected)
    assert _check_parity(near, expected, step)["largest_steps_apart"] == pytest.approx(1, rel=1e-3)
    with pytest.raises(ParityError, match=r"differs from the network that was trained, on 400 rows: .* steps apart"):
        _check_parity(expected[:, ::-1], expected, step)
    with pytest.raises(ParityError, match=r"100.00% are answered alike \(limit 99.5%\), logits lie 3 quantization"):
        _check_parity(expected + 3 * step, expected, step)


def test_a_bias_beside_next_to_no_weight_fits_its_integers(data: TrainingData) -> None:
    module = taught(Narrow)
    with torch.no_grad():
        module.head.weight[0] = 1e-13
        module.head.bias[0] = 2.0
    _, _, facts = train_quantized(module, data, qat(), 0, input_shape=SHAPE)
    assert facts["mean_steps_apart"] < 1
