"""What every test of the data room needs: the text of a refusal."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

from mlites.errors import InputError

settings.register_profile("mlites", derandomize=True, database=None, deadline=None, max_examples=60)
settings.load_profile("mlites")


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Call, expect InputError, and return its message, which must be one line."""

    def call(function: Callable[..., Any], *args: Any, **settings: Any) -> str:
        with pytest.raises(InputError) as caught:
            function(*args, **settings)
        message = str(caught.value)
        assert message and "\n" not in message
        return message

    return call
