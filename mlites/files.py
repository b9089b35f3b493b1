"""Files and folders that appear whole or not at all, and their digests."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlites.errors import InputError

LARGEST_DOCUMENT_BYTES = 64 << 20


def canonical_json(value: Any) -> bytes:
    """Encode so that equal values give equal bytes: sorted keys, no spaces, UTF-8, no NaN.

    Raises:
        ValueError: a float is NaN or infinite; JSON has no such number.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_bytes(data: bytes) -> str:
    """SHA-256 as 64 hexadecimal characters."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value."""
    return digest_bytes(canonical_json(value))


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, keyed by its path with forward slashes, in sorted order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in files}


def digest_folder(folder: Path) -> str:
    """SHA-256 of the names and contents of all files below a folder; times and modes do not count."""
    return digest_json(file_digests(folder))


def read_document(path: Path, format_name: str, kind: str) -> dict[str, Any]:
    """Read a JSON mapping that mlites wrote and that a stranger may have changed.

    Args:
        path: the file, at most 64 MiB.
        format_name: what its field ``format`` must say.
        kind: what it is, in the words of an error.

    Raises:
        InputError: missing, too large, not JSON, or of another format.
    """
    try:
        if path.stat().st_size > LARGEST_DOCUMENT_BYTES:
            raise InputError(f"{path}: larger than {LARGEST_DOCUMENT_BYTES >> 20} MiB; this is no {kind}")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot read the {kind}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not JSON; expected a {kind} ({format_name})") from None
    found = document.get("format") if isinstance(document, dict) else None
    if found != format_name:
        raise InputError(f"{path}: format is {str(found)[:40]!r}; expected a {kind} ({format_name})")
    checked: dict[str, Any] = document
    return checked


def write_atomically(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Write beside the target, flush to disk, rename over it: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside the target; on success it takes the target's name, on failure it is removed.

    An existing target is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield work
        os.chmod(work, 0o755)  # mkdtemp gives 0700, which another user's container could not read
        if path.exists():
            shutil.rmtree(path)
        os.replace(work, path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
