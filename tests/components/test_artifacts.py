from pathlib import Path

from kfp import dsl

from components.artifacts import show_confusion


def test_the_winners_confusion_matrix_has_the_names_of_its_classes(tmp_path: Path) -> None:
    chosen = {"candidate": "small", "classes": ["cat", "dog"], "confusion": [[9, 1], [2, 8]]}
    failed = {"candidate": "broken", "failed": {"step": "quantize", "error": "cut short"}}
    metrics = dsl.ClassificationMetrics(name="winner", uri=str(tmp_path / "winner"))
    show_confusion({"selected": "small", "candidates": [failed, chosen]}, metrics)
    matrix = metrics.metadata["confusionMatrix"]
    assert [one["displayName"] for one in matrix["annotationSpecs"]] == ["cat", "dog"]
    assert [one["row"] for one in matrix["rows"]] == [[9, 1], [2, 8]]
    assert Path(metrics.path).is_file(), "the local cache wants a file behind every artifact"
