"""Take out of an environment what no step uses: tests, headers, debug symbols, descriptions of AWS services but S3.

Kubernetes' client, a thousand generated files, stays as byte code without sources and docstrings.

Usage: python3 docker/trim.py SITE_PACKAGES, while an image is built.
"""

import compileall
import shutil
import subprocess
import sys
from pathlib import Path

FOLDERS = (
    "numpy/**/tests",
    "pandas/tests",
    "scipy/**/tests",
    "sklearn/**/tests",
    "pyarrow/tests",
    "pyarrow/include",
    "gevent/testing",
    "gevent/tests",
    "onnx/backend/test",
    "torch/include",
    "torch/share",
    "sympy/**/tests",
    "networkx/**/tests",
)
FILES = ("torch/lib/*.a", "**/*.pyi", "**/*.pyx", "**/*.pxd", "**/*.c", "**/*.cc", "**/*.cpp", "**/*.h")
AWS_SERVICES = ("s3", "sso", "sso-oidc", "sts")
ALREADY_LEAN = (".libs", "torch", "torch_pruning")  # strip breaks libraries that were patched to find their neighbours


def trim(packages: Path) -> None:
    """Remove files and symbols below a site-packages folder.

    Args:
        packages: Changed in place.
    """
    for pattern in FOLDERS:
        for folder in list(packages.glob(pattern)):
            shutil.rmtree(folder, ignore_errors=True)
    for pattern in FILES:
        for file in list(packages.glob(pattern)):
            file.unlink()
    for folder in (packages / "botocore" / "data").glob("*/"):
        if folder.name not in AWS_SERVICES:
            shutil.rmtree(folder)
    if (packages / "kubernetes").is_dir():
        compileall.compile_dir(packages / "kubernetes", quiet=1, legacy=True, optimize=2)
        for pattern in ("*.py", "__pycache__"):
            for path in list((packages / "kubernetes").rglob(pattern)):
                path.unlink() if path.is_file() else shutil.rmtree(path)
    for library in packages.rglob("*.so"):
        if not library.relative_to(packages).parts[0].endswith(ALREADY_LEAN):
            subprocess.run(["strip", "--strip-unneeded", library], check=True)


if __name__ == "__main__":
    trim(Path(sys.argv[1]))
