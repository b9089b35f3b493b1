"""A layer's noise is measured alone, and the worst comes first."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mlites.compression.quantization.sensitivity import LARGEST_SQNR_DB, measure_sensitivity, sqnr_db
from mlites.compression.quantization.static import static_int8
from mlites.export import answers


def test_sqnr_is_the_ratio_of_powers() -> None:
    generator = np.random.default_rng(0)
    signal = generator.normal(size=(50, 4)).astype(np.float32)
    noise = generator.normal(size=(50, 4)).astype(np.float32) * 0.01
    expected = 20 * np.log10(np.linalg.norm(signal) / np.linalg.norm((signal + noise) - signal))
    assert sqnr_db(signal, signal + noise) == pytest.approx(expected)
    assert sqnr_db(signal, signal) == LARGEST_SQNR_DB
    assert sqnr_db(0 * signal, noise) == -LARGEST_SQNR_DB


def test_a_layer_with_an_outlier_a_channel_is_the_most_sensitive(
    networks: dict[str, onnx.ModelProto], pictures: np.ndarray
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(networks["resnet"])
    weights = [one for one in model.graph.initializer if len(one.dims) == 4]
    spoiled = numpy_helper.to_array(weights[4]).copy()
    spoiled[:, 0, 0, 0] = 30  # leaves the other weights a few steps of the range
    weights[4].CopyFrom(numpy_helper.from_array(spoiled, weights[4].name))
    scheme = static_int8(model, pictures, per_channel=True, calibration="minmax", reduce_range=False)
    found = measure_sensitivity(scheme, answers(model, pictures), pictures)
    assert [one.sqnr_db for one in found] == sorted(one.sqnr_db for one in found)
    assert {one.layer for one in found} == set(scheme.layers)
    shape = "x".join(map(str, spoiled.shape))
    assert shape in found[0].layer.label
    alone = frozenset(layer.name for layer in scheme.layers if layer != found[0].layer)
    noisy = answers(scheme.build(alone), pictures)
    assert found[0].sqnr_db == sqnr_db(answers(model, pictures), noisy)
    changed = (noisy.argmax(1) != answers(model, pictures).argmax(1)).mean()
    assert found[0].changed == pytest.approx(changed)
