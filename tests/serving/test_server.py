import pytest

from mlites.errors import InputError
from mlites.serving.server import Triton


@pytest.mark.parametrize(
    ("environment", "grpc"),
    [
        ({"MLITES_TRITON_URL": "http://host:8000/"}, "host:8001"),
        ({"MLITES_TRITON_URL": "https://host"}, "grpcs://host:8001"),
        ({"MLITES_TRITON_URL": "http://host:8000", "MLITES_TRITON_GRPC": "other:1"}, "other:1"),
    ],
)
def test_grpc_is_by_default_on_the_same_host(environment: dict[str, str], grpc: str) -> None:
    found = Triton.from_environment(environment)
    assert (found.url, found.grpc) == (environment["MLITES_TRITON_URL"].rstrip("/"), grpc)


@pytest.mark.parametrize("url", ["", "host:8000", "grpc://host:8001", "http://"])
def test_an_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="MLITES_TRITON_URL must be http://host:port of a Triton; mlites stack up"):
        Triton.from_environment({"MLITES_TRITON_URL": url})
