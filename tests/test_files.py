"""Files and folders appear whole or not at all."""

import hashlib
from pathlib import Path

import pytest

from mlites.files import canonical_json, digest_file, digest_folder, new_folder, write_atomically


def test_equal_values_give_equal_bytes() -> None:
    assert (
        canonical_json({"b": [1, 2.5], "a": "é"})
        == canonical_json({"a": "é", "b": [1, 2.5]})
        == '{"a":"é","b":[1,2.5]}'.encode()
    )


def test_nan_has_no_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_a_files_digest_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    assert digest_file(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_a_folders_digest_sees_names_and_contents_and_nothing_else(tmp_path: Path) -> None:
    for name, files in {
        "one": {"a/b": "1", "c": "2"},
        "same": {"c": "2", "a/b": "1"},
        "other": {"a/x": "1", "c": "2"},
    }.items():
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
    (tmp_path / "same" / "c").chmod(0o600)
    assert digest_folder(tmp_path / "one") == digest_folder(tmp_path / "same") != digest_folder(tmp_path / "other")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomically(target, "old", mode=0o600)
    assert target.stat().st_mode & 0o777 == 0o600
    with pytest.raises(TypeError):
        write_atomically(target, 3)  # type: ignore[arg-type]
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_fails_leaves_the_old_one_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with new_folder(target) as work:
        (work / "a").write_text("old")
        assert not target.exists()
    with pytest.raises(RuntimeError, match="half way"), new_folder(target) as work:
        (work / "a").write_text("new")
        raise RuntimeError("half way")
    assert (target / "a").read_text() == "old"
    with new_folder(target) as work:
        (work / "b").write_text("newer")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
