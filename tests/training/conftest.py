"""A small prepared dataset, and a cluster whose API is a server of this machine."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from mlites import kubernetes_api
from mlites.data.dataset import Dataset, Preprocessing, write_dataset
from mlites.storage import Store
from mlites.training import cluster, train_job
from tests.training.kubernetes_api import Document, KubernetesApi, Pod, serve

Kubelet = Callable[[KubernetesApi, Document, list[Pod]], None]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Pictures in three classes: each a pattern of its own, in noise."""
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 256, (3, 1, 8, 8))
    splits = {}
    for name, count in (("train", 120), ("validation", 30), ("test", 30)):
        labels = np.arange(count) % 3
        noisy = patterns[labels] * 0.5 + generator.integers(0, 128, (count, 1, 8, 8))
        splits[name] = (noisy.astype(np.uint8), labels.astype(np.int64))
    return write_dataset(
        tmp_path_factory.mktemp("data"),
        task="image-classification",
        source="npz",
        classes=("a", "b", "c"),
        preprocessing=Preprocessing(1 / 255, (0.45,), (0.25,)),
        splits=splits,
    )


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Kubelet], KubernetesApi]]:
    """Starts a cluster that plays its pods as told; KUBECONFIG leads there, and waiting is short."""
    monkeypatch.setattr(kubernetes_api, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(kubernetes_api, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(cluster, "GONE_SECONDS", 0.5)
    monkeypatch.setattr(cluster, "LAST_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(train_job, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(train_job, "TROUBLE_SECONDS", 0.1)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with ExitStack() as stack:

        def start(kubelet: Kubelet) -> KubernetesApi:
            api = stack.enter_context(serve(KubernetesApi(tmp_path, kubelet)))
            monkeypatch.setenv("KUBECONFIG", str(api.write_kubeconfig()))
            return api

        yield start


@pytest.fixture
def s3(store: Store, seaweedfs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store, which the environment leads to."""
    for name, value in seaweedfs.items():
        monkeypatch.setenv(name, value)
    return store
