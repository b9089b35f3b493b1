"""The digits source."""

import subprocess
import sys

import numpy as np
from sklearn.datasets import load_digits

from mlites.data.sources import READERS
from mlites.data.sources.digits import digest
from mlites.recipe import Data


def test_digits_are_scikit_learns() -> None:
    raw = READERS["digits"](None, Data(source="digits"))
    bundle = load_digits()
    assert raw.inputs.dtype == np.uint8 and raw.inputs.shape == (1797, 1, 8, 8)
    assert np.array_equal(raw.inputs[:, 0], bundle.images)
    assert np.array_equal(raw.labels, bundle.target)
    assert raw.classes == tuple("0123456789")
    assert (raw.inputs * raw.scale).max() == 1.0


def test_the_digest_is_taken_without_importing_scikit_learn() -> None:
    code = "import sys; from mlites.data.sources.digits import digest; print(digest(), 'sklearn' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [digest(), "False"]
