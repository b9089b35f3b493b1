"""The real servers, shared by all tests of a session: SeaweedFS alone, or with Triton."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from mlites import stack as embedded
from mlites.storage import Store

SERVER_VARIABLES = (
    "MLITES_HOME",
    "MLITES_S3_ENDPOINT",
    "MLITES_STORE",
    "MLITES_TRITON_URL",
    "MLITES_TRITON_GRPC",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)


def _forget_servers(patch: pytest.MonkeyPatch) -> None:
    for name in SERVER_VARIABLES:
        patch.delenv(name, raising=False)


@pytest.fixture
def without_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a user who has named no servers."""
    _forget_servers(monkeypatch)


@pytest.fixture(scope="session")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """MLITES_HOME of the session's stack, which goes down at the end whatever happened."""
    home = tmp_path_factory.mktemp("home")
    yield home
    with pytest.MonkeyPatch.context() as patch:
        _forget_servers(patch)
        patch.setenv("MLITES_HOME", str(home))
        embedded.down()


@pytest.fixture(scope="session")
def seaweedfs(_home: Path) -> dict[str, str]:
    """A running SeaweedFS: the variables that lead to it."""
    with pytest.MonkeyPatch.context() as patch:
        _forget_servers(patch)
        patch.setenv("MLITES_HOME", str(_home))
        patch.setenv("MLITES_TRITON_URL", "http://127.0.0.1:9")  # named by the user, so none is started
        return {name: value for name, value in embedded.up().items() if "TRITON" not in name}


@pytest.fixture(scope="session")
def stack(_home: Path, seaweedfs: dict[str, str]) -> dict[str, str]:
    """A running SeaweedFS and a running Triton that reads s3://mlites/repository: the variables that lead to them."""
    with pytest.MonkeyPatch.context() as patch:
        _forget_servers(patch)
        patch.setenv("MLITES_HOME", str(_home))
        return embedded.up()


@pytest.fixture
def store(seaweedfs: dict[str, str], tmp_path: Path) -> Store:
    """An empty store of its own in the session's SeaweedFS."""
    return Store.open(f"s3://mlites/{tmp_path.parent.name}/{tmp_path.name}", seaweedfs)


@pytest.fixture
def in_stack(stack: dict[str, str], without_servers: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The session's stack, named by the environment as after ``mlites stack up``."""
    for name, value in stack.items():
        monkeypatch.setenv(name, value)
    return stack


@pytest.fixture
def save(tmp_path: Path) -> Callable[[onnx.ModelProto | bytes, str], Path]:
    """Writes a model as a file of a name."""

    def write(model: onnx.ModelProto | bytes, name: str = "model.onnx") -> Path:
        path = tmp_path / name
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return path

    return write


def pytest_configure() -> None:
    """A shell that starts the tests in its background has them ignore SIGINT, and programs under test inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
