"""The data quality page: one HTML file that needs nothing else, with the verdict, the checks and a look at the data."""

import base64
import io
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from mlites.data.dataset import SPLITS, Inputs
from mlites.data.expectations import Findings
from mlites.data.profile import Columns
from mlites.data.raw import RawData
from mlites.data.splits import Splits

BARS = 28
CLASSES_SHOWN = 40
PICTURED_CLASSES, PICTURES, PICTURE_EDGE = 10, 12, 32


def render_quality(
    document: dict[str, Any], raw: RawData, splits: Splits, columns: Columns, findings: Findings, place: str
) -> str:
    """Fill the template.

    Args:
        document: the data document without its digest.
        raw: for what an image looks like.
        splits: for examples.
        columns: watched columns (n,), in which NaN and infinity may occur.
        findings: checks and drift.
        place: where the data came from, for the heading.
    """
    checks = findings.checks
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("mlites.data").joinpath("quality.html.jinja").read_text("utf-8"))
    return template.render(
        document=document,
        place=place,
        failed=[check for check in checks if check.critical and not check.success],
        warned=[check for check in checks if not check.critical and not check.success],
        passed=[check for check in checks if check.success],
        total=sum(document["rows"].values()),
        classes=_class_bars(document),
        more_classes=max(0, len(document["classes"]) - CLASSES_SHOWN),
        pictures=_pictures(raw, splits) if raw.inputs.ndim == 4 else [],
        columns=[_histogram(name, values, findings) for name, values in columns.items()],
        compared=bool(findings.drift),
    )


def _class_bars(document: dict[str, Any]) -> list[dict[str, Any]]:
    counts = document["class_counts"]
    totals = {name: sum(counts[split][name] for split in SPLITS) for name in document["classes"]}
    largest = max(totals.values())
    return [
        {
            "name": name,
            "total": totals[name],
            "parts": [(split, counts[split][name], 100 * counts[split][name] / largest) for split in SPLITS],
        }
        for name in document["classes"][:CLASSES_SHOWN]
    ]


def _histogram(name: str, values: NDArray[np.float64], findings: Findings) -> dict[str, Any]:
    """Bars of equal width, heights in percent of the tallest."""
    finite = values[np.isfinite(values)]
    counts = np.zeros(BARS) if not len(finite) else np.histogram(finite / 2, BARS)[0]  # halved: a range may overflow
    drift = findings.drift.get(name)
    return {
        "name": name,
        "bars": [round(100 * float(count) / max(1.0, float(counts.max())), 1) for count in counts],
        "low": f"{finite.min():.4g}" if len(finite) else "none",
        "high": f"{finite.max():.4g}" if len(finite) else "none",
        "mean": f"{finite.mean():.4g}" if len(finite) else "none",
        "missing": len(values) - len(finite),
        "psi": f"{drift.psi:.3f}" if drift else None,
    }


def _pictures(raw: RawData, splits: Splits) -> list[dict[str, str]]:
    """A strip of training images for each of the first classes."""
    inputs, labels = splits.parts["train"]
    strips = []
    for label, name in enumerate(raw.classes[:PICTURED_CLASSES]):
        rows = np.flatnonzero(labels == label)[:PICTURES]
        strips.append({"name": name, "png": _strip(inputs[rows], raw.scale)})
    return strips


def _strip(images: Inputs, scale: float) -> str:
    """(n, channels, height, width) side by side as a base64 PNG."""
    levels = np.clip(images.astype(np.float32) * np.float32(scale * 255), 0, 255).astype(np.uint8)
    count, _, height, width = levels.shape
    shrink = max(1.0, max(height, width) / PICTURE_EDGE)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    sheet = Image.new({1: "L", 3: "RGB", 4: "RGBA"}[levels.shape[1]], (size[0] * count, size[1]))
    for index, image in enumerate(levels.transpose(0, 2, 3, 1)):
        sheet.paste(
            Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).resize(size, Image.Resampling.BOX),
            (index * size[0], 0),
        )
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
