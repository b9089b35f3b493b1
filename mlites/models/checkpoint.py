"""Model folders in PyTorch form: weights as safetensors, sizes and provenance as JSON, never a pickle."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mlites.errors import InputError
from mlites.models.build import build_model
from mlites.models.card import ModelCard, read_card, write_model_folder
from mlites.models.sizes import changed_sizes, restore_sizes_


def save_model(folder: Path, module: nn.Module, card: ModelCard) -> ModelCard:
    """Write a module and its card as a whole folder; an existing one is replaced.

    Returns:
        The card as written: with sizes of changed layers, file digests and its own digest.

    Raises:
        ValueError: a layer has another shape than the architecture's and is of a kind whose size is not recorded.
    """
    skeleton = _skeleton(card)
    sizes = changed_sizes(module, skeleton)
    restore_sizes_(skeleton, sizes)
    found, restored = ({n: tuple(t.shape) for n, t in one.state_dict().items()} for one in (module, skeleton))
    if found != restored:
        name = min(n for n in {*found, *restored} if found.get(n) != restored.get(n))
        raise ValueError(f"{name} has shape {found.get(name)}, a reloaded model would have {restored.get(name)}")
    # cloned, as safetensors refuses tensors that share memory (tied weights)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    return write_model_folder(folder, save(state), dataclasses.replace(card, form="torch", layers=sizes))


def load_model(folder: Path) -> tuple[nn.Module, ModelCard]:
    """Rebuild the module from the folder alone, in evaluation mode on the CPU.

    Raises:
        InputError: the folder is damaged, of another format, or its weights do not fit its architecture.
    """
    card = read_card(folder)
    if card.form != "torch":
        raise InputError(f"{folder}: holds an ONNX model, which no longer trains; give a PyTorch model folder")
    try:
        module = _skeleton(card)
        restore_sizes_(module, card.layers)
    except InputError as error:
        raise InputError(f"{folder / 'model.json'}: {error}") from None
    load_weights_(module, folder / "model.safetensors")
    return module.eval(), card


def load_weights_(module: nn.Module, path: Path) -> None:
    """Fill a module, on the meta device or real, from a safetensors file whose names and shapes must all match.

    Raises:
        InputError: the file is damaged or does not fit; the first name that differs is given.
    """
    expected = module.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names | set(expected)):
                if name not in names:
                    raise InputError(f"{path}: lacks {name}, which the architecture has")
                if name not in expected:
                    raise InputError(f"{path}: holds {name[:80]}, which the architecture does not have")
                shape, wanted = tuple(file.get_slice(name).get_shape()), tuple(expected[name].shape)
                if shape != wanted:
                    raise InputError(f"{path}: {name} has shape {shape}, the architecture wants {wanted}")
            state: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file: {str(error).splitlines()[0]}") from None
    for name, tensor in state.items():
        if tensor.dtype != expected[name].dtype:
            state[name] = tensor.to(expected[name].dtype)  # weights kept in half precision are widened
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{path}: {name} holds NaN or infinity; train the model again")
    _materialize_(module)
    module.load_state_dict(state, strict=True)


def _skeleton(card: ModelCard) -> nn.Module:
    """The architecture without weights; only a user's factory allocates, as it may compute while it builds."""
    options: dict[str, Any] = card.architecture
    device = "cpu" if options.get("family") == "factory" else "meta"
    with torch.device(device):
        return build_model(options, card.input_shape, len(card.classes))


def _materialize_(module: nn.Module) -> None:
    """Allocate what is on the meta device; its values are undefined until loaded."""
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.is_meta:
                setattr(layer, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))
        for name, buffer in layer.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(layer, name, torch.empty_like(buffer, device="cpu"))
