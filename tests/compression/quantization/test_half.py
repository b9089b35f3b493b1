"""Sixteen bits: the rounding of the type, half the bytes, and no claim that the runtime does not keep."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mlites.compression.quantization.half import OPERATORS, bf16, compute_in, fp16, missing_kernels, store_in_fp16
from mlites.compression.quantization.scheme import Scheme, find_layers, prepare
from mlites.errors import InputError
from mlites.export import answers

NONE: frozenset[str] = frozenset()


def narrow_scheme(model: onnx.ModelProto, kind: int) -> Scheme:
    prepared = prepare(model)
    return compute_in(prepared, kind, find_layers(prepared, OPERATORS))


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every large constant rounded to FP16, in FP32."""
    copied = onnx.ModelProto()
    copied.CopyFrom(prepare(model))
    for one in copied.graph.initializer:
        array = numpy_helper.to_array(one)
        if array.dtype == np.float32 and array.size >= 64:
            one.CopyFrom(numpy_helper.from_array(array.astype(np.float16).astype(np.float32), one.name))
    return copied


@pytest.mark.parametrize("name", ["resnet", "mobile", "attention", "mlp"])
def test_stored_fp16_answers_as_its_rounded_weights(
    networks: dict[str, onnx.ModelProto], pictures: np.ndarray, name: str
) -> None:
    stored = store_in_fp16(prepare(networks[name])).build(NONE)
    assert np.allclose(answers(stored, pictures), answers(rounded(networks[name]), pictures), rtol=1e-5, atol=1e-6)


def test_stored_fp16_takes_half_the_bytes(networks: dict[str, onnx.ModelProto]) -> None:
    stored = store_in_fp16(prepare(networks["resnet"])).build(NONE)
    large = [one for one in networks["resnet"].graph.initializer if np.prod(one.dims) >= 64]
    kinds = {one.data_type for one in stored.graph.initializer if np.prod(one.dims) >= 64}
    assert kinds == {TensorProto.FLOAT16}
    assert sum(2 * int(np.prod(one.dims)) for one in large) < stored.ByteSize() < 0.6 * networks["resnet"].ByteSize()


def test_layers_asked_for_stay_in_float(networks: dict[str, onnx.ModelProto]) -> None:
    scheme = store_in_fp16(prepare(networks["mlp"]))
    first = scheme.layers[0]
    kinds = {one.data_type: tuple(one.dims) for one in scheme.build(frozenset({first.name})).graph.initializer
             if len(one.dims) == 2}  # fmt: skip
    assert kinds == {TensorProto.FLOAT: (48, 64), TensorProto.FLOAT16: (4, 48)}
    assert first.label == "Gemm 1 (48x64)"


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_computing_in_16_bits_rounds_what_each_layer_reads_and_writes(
    networks: dict[str, onnx.ModelProto], pictures: np.ndarray, kind: int
) -> None:
    values = {one.name: numpy_helper.to_array(one) for one in prepare(networks["mlp"]).graph.initializer}
    kinds = {TensorProto.FLOAT16: np.dtype(np.float16), TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}

    def narrow(array: np.ndarray) -> np.ndarray:
        return array.astype(kinds[kind]).astype(np.float32)

    hidden = pictures[:20].reshape(20, 64)
    weights = sorted((one for one in values.values() if one.ndim == 2), key=len, reverse=True)
    biases = sorted(
        (one for one in values.values() if one.ndim == 1 and one.dtype == np.float32), key=len, reverse=True
    )
    first = np.maximum(narrow(narrow(hidden) @ narrow(weights[0]).T + narrow(biases[0])), 0)
    expected = narrow(narrow(first) @ narrow(weights[1]).T + narrow(biases[1]))
    model = narrow_scheme(networks["mlp"], kind).build(NONE)
    (found,) = ReferenceEvaluator(model).run(None, {"input": pictures[:20]})
    step = float(ml_dtypes.finfo(kinds[kind]).eps)
    assert np.abs(found - expected).max() <= 4 * step * np.abs(expected).max()
    assert np.abs(found - answers(networks["mlp"], pictures[:20])).max() > 0


@pytest.mark.parametrize("name", ["resnet", "attention"])
def test_the_runtime_takes_layers_in_fp16(
    networks: dict[str, onnx.ModelProto], pictures: np.ndarray, name: str
) -> None:
    scheme = narrow_scheme(networks[name], TensorProto.FLOAT16)
    model = scheme.build(frozenset({scheme.layers[0].name}))
    onnx.checker.check_model(model, full_check=True)
    expected, found = answers(networks[name], pictures), answers(model, pictures)
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
    assert scheme.facts == {"computes_in": "float16"}


def test_fp16_says_what_it_computes_in(networks: dict[str, onnx.ModelProto]) -> None:
    scheme = fp16(networks["resnet"])
    lacking = missing_kernels(TensorProto.FLOAT16, ["Conv", "Gemm"])
    assert scheme.facts == {"computes_in": "float32" if lacking else "float16"}


def test_bf16_is_built_where_kernels_are_and_else_refused_with_what_lacks(
    networks: dict[str, onnx.ModelProto], pictures: np.ndarray
) -> None:
    lacking = missing_kernels(TensorProto.BFLOAT16, ["Gemm"])
    if lacking:
        with pytest.raises(InputError, match=f"{ort.__version__} has no bfloat16 Gemm .* use method: fp16"):
            bf16(networks["mlp"])
    else:
        assert answers(bf16(networks["mlp"]).build(NONE), pictures).shape == (150, 4)


def test_a_type_without_kernels_is_found_by_trying() -> None:
    assert missing_kernels(TensorProto.FLOAT, OPERATORS) == []
    assert missing_kernels(TensorProto.FLOAT8E4M3FN, ["MatMul"]) == ["MatMul"]


def single(operator: str, weight: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(operator, ["input", "weight"], ["logits"])],
        "single",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", len(weight)])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weight.shape[-1]])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_weights_beyond_the_range_are_refused_with_the_layer() -> None:
    weight = np.ones((16, 8), np.float32)
    weight[3, 3] = 70000
    with pytest.raises(InputError, match=r"fp16 reaches 65504 and MatMul 1 \(16x8\) holds 7e\+04; normalise"):
        fp16(single("MatMul", weight))
    with pytest.raises(InputError, match="fp16 reaches 65504"):
        narrow_scheme(single("MatMul", weight), TensorProto.FLOAT16)


def test_models_with_nothing_to_narrow_are_refused() -> None:
    with pytest.raises(InputError, match="no weight of 64 numbers or more, so nothing would be saved"):
        fp16(single("Add", np.ones((4, 4), np.float32)))
    with pytest.raises(InputError, match="bf16 needs a convolution or a matrix product and this model has none"):
        bf16(single("Add", np.ones((4, 4), np.float32)))
