"""Every operator computes what ONNX Runtime computes, and has a gradient where it is smooth."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mlites.compression.quantization.onnx_network import OnnxNetwork, unknown_operators
from mlites.compression.quantization.onnx_operators import OPERATORS
from mlites.errors import InputError

RNG = np.random.default_rng(0)
X4 = RNG.normal(size=(2, 4, 6, 6)).astype(np.float32)
X3 = RNG.normal(size=(2, 4, 6)).astype(np.float32)
X5 = RNG.normal(size=(2, 4, 4, 4, 4)).astype(np.float32)
POSITIVE = np.abs(X3) + 0.1


def f(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def i(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def one(number: float) -> np.ndarray:
    return np.array(number, np.float32)


FOUR = (f(4), f(4))
# operator, its first input, further inputs (None: left out), attributes
CASES: list[tuple[str, np.ndarray, tuple, dict]] = [
    ("Conv", X4, (f(8, 4, 3, 3), f(8)), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", X4, (f(4, 1, 3, 3),), {"pads": [0, 1, 2, 1], "group": 4}),
    ("Conv", X3, (f(8, 2, 3), f(8)), {"dilations": [2], "group": 2}),
    ("Conv", X5, (f(3, 4, 2, 2, 2),), {}),
    ("ConvTranspose", X4, (f(4, 3, 3, 3), f(3)), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ("Gemm", X3[0], (f(5, 6), f(5)), {"transB": 1}),
    ("Gemm", X3[0], (f(4, 5), f(6, 5)), {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", X3[0], (f(6, 5),), {"alpha": 0.5}),
    ("MatMul", X3, (f(2, 6, 5),), {}),
    ("Einsum", X3, (f(2, 6, 5),), {"equation": "bij,bjk->bik"}),
    ("BatchNormalization", X4, (*FOUR, f(4), np.abs(f(4))), {"epsilon": 1e-3}),
    ("LayerNormalization", X3, (f(6), f(6)), {"axis": -1}),
    ("LayerNormalization", X3, (f(4, 6),), {"axis": 1}),
    ("InstanceNormalization", X4, FOUR, {}),
    ("GroupNormalization", X4, (f(2), f(2)), {"num_groups": 2}),
    ("MaxPool", X4, (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", X4, (), {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    ("AveragePool", X4, (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", X3, (), {"kernel_shape": [2], "strides": [2]}),
    ("GlobalAveragePool", X4, (), {}),
    ("GlobalMaxPool", X4, (), {}),
    *((f"Reduce{name}", X3, (i(1, 2),), {"keepdims": 0}) for name in ("Mean", "Sum", "Max", "Min", "L1", "L2")),
    ("ReduceSumSquare", X3, (i(-1),), {}),
    ("ReduceProd", X3, (i(0, 2),), {}),
    ("ReduceMean", X3, (), {}),
    ("ReduceMean", X3, (), {"noop_with_empty_axes": 1}),
    *((name, X3, (f(6),), {}) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum")),
    ("Pow", POSITIVE, (one(1.5),), {}),
    *((name, X3, (), {}) for name in ("Abs", "Neg", "Exp", "Erf", "Sin", "Cos", "Tanh", "Sigmoid", "Softplus")),
    *((name, X3, (), {}) for name in ("Softsign", "Mish", "Relu", "HardSwish", "Selu", "Identity", "Floor", "Ceil")),
    *((name, X3, (), {}) for name in ("Sign", "Dropout")),
    *((name, POSITIVE, (), {}) for name in ("Sqrt", "Reciprocal", "Log")),
    *((name, X3, (), {"alpha": 0.3}) for name in ("LeakyRelu", "Elu", "Celu")),
    ("HardSigmoid", X3, (), {"alpha": 0.3, "beta": 0.4}),
    ("PRelu", X3, (f(4, 1),), {}),
    ("Clip", X3, (one(-0.5), one(0.7)), {}),
    ("Clip", X3, (None, one(0.7)), {}),
    ("Gelu", X3, (), {"approximate": "tanh"}),
    *((name, X3, (), {"axis": 1}) for name in ("Softmax", "LogSoftmax")),
    ("Reshape", X3, (i(0, -1, 3),), {}),
    ("Reshape", X3, (i(-1, 3),), {"allowzero": 1}),
    ("Flatten", X3, (), {"axis": 2}),
    ("Transpose", X3, (), {"perm": [0, 2, 1]}),
    ("Transpose", X3, (), {}),
    ("Squeeze", X3[:, :1], (i(1),), {}),
    ("Squeeze", X3[:, :1], (), {}),
    ("Unsqueeze", X3, (i(0, -1),), {}),
    ("Concat", X3, (f(2, 3, 6),), {"axis": 1}),
    ("Split", X3, (i(1, 3),), {"axis": 1}),
    ("Split", X3, (), {"axis": 2, "num_outputs": 2}),
    ("Slice", X3, (i(1, 0), i(2**40, -1), i(1, 2), i(1, 2)), {}),
    ("Slice", X3, (i(-1), i(-(2**40)), i(2), i(-1)), {}),
    ("Slice", X3, (i(0, 1), i(1, 3)), {}),
    ("Gather", X3, (np.array([[0, -1], [2, 1]], np.int64),), {"axis": 1}),
    ("Gather", X3, (np.array(-2, np.int64),), {"axis": 2}),
    ("GatherElements", X3, (np.array([[[0, -1]]], np.int64),), {"axis": 2}),
    ("Expand", X3[:, :1], (i(3, 1, 5, 1),), {}),
    ("Tile", X3, (i(1, 2, 1),), {}),
    ("Pad", X4, (i(0, 0, 1, 2, 0, 0, 3, 0), one(1.5)), {}),
    ("Pad", X4, (i(1, 2), None, i(3)), {"mode": "reflect"}),
    ("Pad", X4, (i(1, 2), None, i(-1)), {"mode": "edge"}),
    ("Resize", X4, (None, np.array([1, 1, 2, 2], np.float32)),
     {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("Resize", X4, (None, None, i(2, 4, 9, 12)), {"mode": "linear"}),
    ("Resize", X4, (None, None, i(2, 4, 9, 12)),
     {"mode": "cubic", "coordinate_transformation_mode": "align_corners", "cubic_coeff_a": -0.75}),
    ("DepthToSpace", X4, (), {"blocksize": 2}),
    ("DepthToSpace", X4, (), {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", X4, (), {"blocksize": 2}),
    ("Trilu", X3, (np.array(1, np.int64),), {"upper": 0}),
    ("Trilu", X3, (), {}),
    ("CumSum", X3, (np.array(1, np.int64),), {}),
]  # fmt: skip
TRUTHS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")


def model_of(nodes: list[onnx.NodeProto], stored: dict[str, np.ndarray], shape: tuple[int, ...]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info("output")],
        [numpy_helper.from_array(values, name) for name, values in stored.items()],
    )
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    opset = 20 if any(node.op_type == "Gelu" for node in nodes) else 18
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def compare(model: onnx.ModelProto, x: np.ndarray, smooth: bool = True) -> None:
    expected = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        ["output"], {"input": x}
    )[0]
    inputs = torch.from_numpy(x.copy()).requires_grad_()
    found = OnnxNetwork(model, [], {})(inputs)
    assert found.shape == expected.shape
    assert np.allclose(found.detach().numpy(), expected, rtol=1e-4, atol=2e-5)
    if smooth:
        found.sum().backward()
        assert inputs.grad is not None and bool(inputs.grad.isfinite().all())


@pytest.mark.parametrize(("operator", "x", "further", "attributes"), CASES, ids=[case[0] for case in CASES])
def test_operator_is_onnx_runtimes(operator: str, x: np.ndarray, further: tuple, attributes: dict) -> None:
    stored = {f"c{number}": values for number, values in enumerate(further) if values is not None}
    names = ["input", *(f"c{number}" if values is not None else "" for number, values in enumerate(further))]
    outputs = ["output", "rest"] if operator == "Split" else ["output"]
    compare(model_of([helper.make_node(operator, names, outputs, **attributes)], stored, x.shape), x)


@pytest.mark.parametrize("operator", TRUTHS)
def test_comparisons_choose_as_onnx_runtime_does(operator: str) -> None:
    nodes = [
        helper.make_node(operator, ["input", "c"], ["truth"]),
        helper.make_node("Not", ["truth"], ["false"]),
        helper.make_node("IsNaN", ["input"], ["nan"]),
        helper.make_node("Or", ["false", "nan"], ["either"]),
        helper.make_node("And", ["either", "false"], ["both"]),
        helper.make_node("Where", ["both", "input", "other"], ["output"]),
    ]
    compare(model_of(nodes, {"c": X3[0, 0], "other": one(9.0)}, X3.shape), X3)


def test_shapes_are_computed_as_onnx_runtime_does() -> None:
    """The rows counted, a range of them, ones of a shape, a product of integers: as exported views compute them."""
    nodes = [
        helper.make_node("Shape", ["input"], ["rows"], start=0, end=1),
        helper.make_node("Size", ["input"], ["size"]),
        helper.make_node("Div", ["size", "rows"], ["width"]),
        helper.make_node("Concat", ["rows", "width"], ["flat"], axis=0),
        helper.make_node("Reshape", ["input", "flat"], ["wide"]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Constant", [], ["step"], value=numpy_helper.from_array(np.array(1, np.int64))),
        helper.make_node("Squeeze", ["rows"], ["count"]),
        helper.make_node("Range", ["zero", "count", "step"], ["places"]),
        helper.make_node("Cast", ["places"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weights", "last"], ["column"]),
        helper.make_node("ConstantOfShape", ["flat"], ["ones"], value=helper.make_tensor("v", 1, [1], [1.0])),
        helper.make_node("Mul", ["column", "ones"], ["grid"]),
        helper.make_node("Add", ["grid", "wide"], ["output"]),
    ]
    compare(model_of(nodes, {"last": i(-1)}, X3.shape), X3)


def test_every_operator_is_compared() -> None:
    compared = {case[0] for case in CASES} | set(TRUTHS) | {"Not", "IsNaN", "Or", "And", "Where"}
    compared |= {"Shape", "Size", "Concat", "Constant", "Range", "Cast", "ConstantOfShape"}
    assert compared == set(OPERATORS)


def test_an_operator_without_a_form_in_torch_is_named() -> None:
    nodes = [helper.make_node("Hardmax", ["input"], ["hard"]), helper.make_node("Det", ["hard"], ["output"])]
    model = model_of(nodes, {}, (2, 3, 3))
    assert unknown_operators(model) == ["Det", "Hardmax"]
    with pytest.raises(InputError, match="no gradient of Det, Hardmax"):
        OnnxNetwork(model, [], {})


def test_values_are_let_go_of_once_read() -> None:
    """Of a long chain, evaluation holds a few activations at a time and not all of them."""
    nodes = [
        helper.make_node("Relu", [f"v{number}" if number else "input"], [f"v{number + 1}" if number < 9 else "output"])
        for number in range(10)
    ]
    network = OnnxNetwork(model_of(nodes, {}, (2, 3)), [], {})
    assert [node.released for node in network._nodes] == [("input",), *((f"v{number}",) for number in range(1, 10))]
