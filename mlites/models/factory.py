"""A user's own network: an import path to a function that builds it."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from torch import nn

from mlites.errors import InputError

TRUSTED = "MLITES_TRUSTED_FACTORIES"


def call_factory(path: str, options: dict[str, Any]) -> nn.Module:
    """Import ``package.module:function`` and call it, if the environment lists it as trusted.

    A model folder from elsewhere can name any function, and importing runs code: so the list, not the folder, decides.

    Raises:
        InputError: not listed, not importable, or not returning a ``torch.nn.Module``.
    """
    trusted = [entry.strip() for entry in os.environ.get(TRUSTED, "").split(",")]
    if path not in trusted:
        raise InputError(f"factory {path[:200]!r} is not trusted; to let its code run, list it in {TRUSTED}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, so that nothing in the user's folder stands in for a library
    module_name, _, function_name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        built = function(**options)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else "no message"
        raise InputError(f"factory {path}: {type(error).__name__}: {reason}") from error
    if not isinstance(built, nn.Module):
        raise InputError(f"factory {path} returned {type(built).__name__}; it must return a torch.nn.Module")
    return built
