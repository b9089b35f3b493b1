"""The model card: what a model folder holds, where it came from, and whether its bytes are still the same."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from mlites.errors import InputError, first_fault
from mlites.failure import CandidateFailed, read_failure
from mlites.files import canonical_json, digest_bytes, digest_file, digest_json, new_folder, read_document

FORMAT = "mlites-model/1"
FILE_OF_FORM = {"torch": "model.safetensors", "onnx": "model.onnx"}

Size = Annotated[int, Field(ge=1, le=1 << 24)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The content of ``model.json``. ``files`` and ``digest`` are filled in when the folder is written."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    form: Literal["torch", "onnx"]
    architecture: dict[str, Any]
    input_shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=3)]
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    preprocessing: dict[str, Any]
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    parents: tuple[Digest, ...] = ()
    provenance: tuple[dict[str, Any], ...] = ()
    files: dict[str, Digest] = field(default_factory=dict)
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """Everything that ``digest`` covers, the format's name included."""
        content: dict[str, Any] = json.loads(canonical_json(dataclasses.asdict(self)))
        del content["digest"]
        return {"format": FORMAT, **content}

    def after(
        self,
        step: str,
        *,
        options: dict[str, Any],
        data: str,
        metrics: dict[str, Any],
        seed: int | None = None,
        history: list[dict[str, float]] | None = None,
        **changed: Any,
    ) -> "ModelCard":
        """The card of this model's child: this model becomes its parent, the step the last of its provenance.

        Args:
            step: train, distill, prune, export or quantize.
            options: the step's own options as JSON values.
            data: digest of the dataset used.
            metrics: figures found on the way.
            seed: of the step's random draws, where it draws any.
            history: one entry an epoch, where the step trains.
            **changed: fields in which the child differs, such as ``form`` or ``architecture``.
        """
        entry: dict[str, Any] = {"step": step, "options": options, "data": data, "metrics": metrics}
        if seed is not None:
            entry["seed"] = seed
        if history is not None:
            entry["history"] = history
        parents = (self.digest,) if self.digest else ()
        return dataclasses.replace(
            self, parents=parents, provenance=(*self.provenance, entry), files={}, digest="", **changed
        )


def write_model_folder(folder: Path, content: bytes, card: ModelCard) -> ModelCard:
    """Write the model's one file and its card, whole or not at all; an existing folder is replaced.

    Returns:
        The card as written, with the file's digest and its own.
    """
    name = FILE_OF_FORM[card.form]
    card = dataclasses.replace(card, files={name: digest_bytes(content)}, digest="")
    card = dataclasses.replace(card, digest=digest_json(card.to_json()))
    with new_folder(folder) as work:
        (work / name).write_bytes(content)
        (work / "model.json").write_bytes(canonical_json({**card.to_json(), "digest": card.digest}))
    return card


def read_card(folder: Path) -> ModelCard:
    """Read ``model.json`` and verify the digests of card and file.

    Raises:
        CandidateFailed: the step that would have made the model failed.
        InputError: the folder is not an mlites model, or its bytes changed.
    """
    if failure := read_failure(folder):
        raise CandidateFailed(failure)
    path = folder / "model.json"
    content = read_document(path, FORMAT, "model card")
    card = _parse(path, {key: value for key, value in content.items() if key != "format"})
    if digest_json(card.to_json()) != card.digest:
        raise InputError(f"{path}: digest does not match its content; the card was altered, write the model anew")
    name = FILE_OF_FORM[card.form]
    if set(card.files) != {name}:
        raise InputError(f"{path}: files must name {name} alone, got {', '.join(sorted(card.files))[:80] or 'nothing'}")
    try:
        actual = digest_file(folder / name)
    except OSError as error:
        raise InputError(f"{folder / name}: cannot read the model: {error.strerror}") from None
    if actual != card.files[name]:
        raise InputError(f"{folder / name}: digest is {actual[:12]}, model.json says {card.files[name][:12]}; altered")
    return card


def _parse(path: Path, content: dict[str, Any]) -> ModelCard:
    try:
        card = TypeAdapter(ModelCard).validate_json(json.dumps(content))
    except ValidationError as error:
        place, fault = first_fault(error, "card")
        raise InputError(f"{path}: {place}: {fault[0].lower()}{fault[1:]}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not a model card: nested too deeply or holding NaN") from None
    if math.prod(card.input_shape) > 1 << 26:
        raise InputError(f"{path}: input_shape {list(card.input_shape)} has more than 2**26 values")
    return card
