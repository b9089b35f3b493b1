from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlites.models.card import read_card
from mlites.recipe import Serving
from mlites.serving.repository import configuration, configuration_json, versions_in
from mlites.serving.server import Triton
from mlites.serving.smoke import TOLERANCE, WrongAnswers, smoke_test


@pytest.fixture
def loaded(triton: Triton, models: Any, name: str) -> str:
    """The model of seed 1, batches up to 4."""
    folder = models.folder(1)
    config = configuration_json(configuration(name, read_card(folder), Serving(max_batch_size=4), [1], 1))
    triton.load_apart(name, config, {"1/model.onnx": (folder / "model.onnx").read_bytes()})
    return name


def test_right_answers_pass_alone_and_in_batches(
    triton: Triton, loaded: str, models: Any, golden: NDArray[np.float32]
) -> None:
    found = smoke_test(triton, loaded, 1, golden, golden @ models.weight(1), 4)
    assert (found.samples, found.agreement) == (10, 1.0) and found.max_abs_difference < 1e-5


def test_one_logit_out_of_tolerance_fails(
    triton: Triton, loaded: str, models: Any, golden: NDArray[np.float32]
) -> None:
    expected = golden @ models.weight(1)
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    near, far = expected.copy(), expected.copy()
    near[7, 1] += 0.9 * allowed
    far[7, 1] += 1.1 * allowed
    found = smoke_test(triton, loaded, 1, golden, near, 4)
    assert found.max_abs_difference == pytest.approx(0.9 * allowed, rel=1e-3)
    with pytest.raises(WrongAnswers, match=rf"{loaded} version 1 over HTTP differs from the ONNX file by"):
        smoke_test(triton, loaded, 1, golden, far, 4)


def test_another_shape_of_answer_fails(triton: Triton, loaded: str, golden: NDArray[np.float32]) -> None:
    with pytest.raises(WrongAnswers, match=r"answers with shape \(1, 3\), the ONNX file with \(1, 7\)"):
        smoke_test(triton, loaded, 1, golden, np.zeros((10, 7), np.float32), 4)


def test_versions_are_read_from_a_configuration() -> None:
    assert versions_in("version_policy { specific { versions: [3, 1] } }") == [1, 3]
    assert versions_in("version_policy: { specific: { versions: 4 } }") == [4]
    for text in ('name: "x"', "version_policy { latest { num_versions: 1 } }"):
        with pytest.raises(ValueError, match="names no versions"):
            versions_in(text)
    with pytest.raises(ValueError, match="not a model configuration"):
        versions_in("{")
