"""The virtual environment that Triton runs in: pinned, whole or not at all, in the user's cache for all checkouts."""

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlites.errors import InputError
from mlites.files import new_folder

PINS = ("numpy==2.4.6", "onnxruntime==1.31.1", "nvidia-pytriton==0.7.0")
IMPORTS = ("numpy", "onnxruntime")  # tried before an environment counts as whole
STUBS = ((3, 11), (3, 12), (3, 13))  # Python versions for which nvidia-pytriton ships a stub, from ours on
BUNDLED_LIBPYTHON = (3, 13)  # its libpython comes with the wheel
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
COMPLETE = "complete.json"


def prepare(say: Callable[[str], None]) -> Path:
    """The environment's folder, built first if it is not there. Safe beside other builders and after a kill.

    Raises:
        InputError: this Python has no stub, a package cannot be installed, or libpython is missing.
    """
    if sys.version_info[:2] not in STUBS:
        versions = ", ".join(f"{major}.{minor}" for major, minor in STUBS)
        raise InputError(
            f"the embedded Triton runs under Python {versions}, this is {VERSION}; use one of those, or set "
            "MLITES_TRITON_URL to a Triton of your own"
        )
    target = cache_folder() / f"triton-{_digest()}"
    if _is_whole(target):
        return target
    with _lock(target):
        if not _is_whole(target):
            for rest in target.parent.glob(f".{target.name}.*"):
                shutil.rmtree(rest)
            say("building Triton's environment (once; about 90 MB to download)")
            with new_folder(target) as work:
                _build(work)
    return target


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/mlites``, by default ``~/.cache/mlites``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "mlites"


def site_packages(environment: Path) -> Path:
    """Where the environment's packages are."""
    return environment / "lib" / f"python{VERSION}" / "site-packages"


def _digest() -> str:
    described = [PINS, sys.version, os.path.realpath(sys.base_prefix)]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _is_whole(target: Path) -> bool:
    """Complete, and the Python and the libpython that its links point to are still installed."""
    links = [target / "bin" / "python3", *target.glob("lib/libpython*")]
    return (target / COMPLETE).exists() and all(link.exists() for link in links)


def _build(work: Path) -> None:
    try:
        venv.EnvBuilder(with_pip=False, symlinks=True).create(work)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"cannot make a virtual environment: {error}; apt install python{VERSION}-venv") from None
    # Whatever PYTHONPATH leads to is not installed there, and Triton's stub does not look at it.
    arguments = ["install", "--quiet", "--no-deps", "--ignore-installed", "--disable-pip-version-check", *PINS]
    result = subprocess.run(
        [*_pip(work), *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()
        raise InputError(
            f"cannot install {', '.join(PINS)}: {' '.join((lines or ['pip failed'])[-1].split())[:300]}; check the "
            "network and the package index, or set MLITES_TRITON_URL to a Triton of your own"
        )
    trial = subprocess.run(
        [work / "bin" / "python3", "-I", "-c", f"import {', '.join(IMPORTS)}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if trial.returncode:
        reason = trial.stderr.strip().splitlines()[-1][:300]
        raise InputError(
            f"Triton's environment cannot import {' and '.join(IMPORTS)}: {reason}; "
            "set MLITES_TRITON_URL to a Triton of your own"
        )
    if sys.version_info[:2] < BUNDLED_LIBPYTHON:
        _provide_libpython(work / "lib")
    (work / COMPLETE).write_text(json.dumps({"pins": PINS, "python": sys.version}))


def _pip(work: Path) -> list[str]:
    """The pip of this environment, pointed at the other: Debian's venv has none of its own without python3-venv."""
    python = str(work / "bin" / "python3")
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "--python", python]
    ensure = subprocess.run([python, "-m", "ensurepip"], capture_output=True, check=False)
    if ensure.returncode:
        raise InputError(f"no pip to install Triton with; apt install python3-pip python{VERSION}-venv")
    return [python, "-m", "pip"]


def _provide_libpython(target: Path) -> None:
    """Put the libpython that the stub is linked to into the environment: a link to the system's, or Debian's file."""
    name = f"libpython{VERSION}.so.1.0"
    for folder in _library_folders():
        if (folder / name).exists():
            (target / name).symlink_to(folder / name)
            return
    package = f"libpython{VERSION}"
    with tempfile.TemporaryDirectory() as scratch:
        # Needs no root: the package is fetched, verified by apt, and unpacked into the environment.
        for command in (["apt-get", "download", package], ["sh", "-c", "dpkg-deb --extract ./*.deb ."]):
            if shutil.which(command[0]):
                subprocess.run(command, cwd=scratch, capture_output=True, check=False, timeout=120)
        for found in Path(scratch).rglob(name):
            shutil.copyfile(found, target / name)
            return
    raise InputError(f"Triton needs {name}, which is not on this machine; apt install {package}")


def _library_folders() -> Iterator[Path]:
    if folder := sysconfig.get_config_var("LIBDIR"):
        yield Path(folder)
    if multiarch := sysconfig.get_config_var("MULTIARCH"):
        yield Path("/usr/lib") / multiarch
    yield from (Path("/usr/lib64"), Path("/usr/lib"), Path("/usr/local/lib"))
    loader = shutil.which("ldconfig", path="/sbin:/usr/sbin:/bin:/usr/bin")
    if loader:
        listing = subprocess.run([loader, "-p"], capture_output=True, text=True, check=False).stdout
        yield from (Path(path).parent for path in re.findall(rf"=> (\S+libpython{re.escape(VERSION)}\S*)", listing))


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
