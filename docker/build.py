"""Build the images with docker, podman or buildah, whichever is there, and print their sizes.

Usage: python3 docker/build.py [IMAGE...], see --help. Needs Python alone; `make images` calls it.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
BASES = {
    "train": "PYTHON_BASE",
    "validate": "PYTHON_BASE",
    "deploy": "PYTHON_BASE",
    "seaweedfs": "PYTHON_BASE",
    "triton": "TRITON_BASE",
}
LIMIT_MB = {"train": 1600, "deploy": 250}  # without the base, 10^6 bytes
TAG = re.compile(r"\w[\w.-]{0,127}")
TABLE = re.compile(r"(?<=<!-- sizes -->\n).*?(?=<!-- /sizes -->)", re.DOTALL)


class Refused(Exception):
    """What keeps the images from being built, in one line."""


def pins() -> dict[str, str]:
    """The base images of docker/pins.env."""
    lines = (DOCKER / "pins.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def version() -> str:
    """The package's version, which is the images' default tag."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "mlites" / "__init__.py").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def find_engine(wanted: str | None) -> str:
    """The program that builds: the one wanted, or the first of docker, podman and buildah that works here."""
    missing = []
    for engine in [wanted] if wanted else ["docker", "podman", "buildah"]:
        if not shutil.which(engine):
            missing.append(f"{engine} is not installed")
        elif subprocess.run([engine, "info"], capture_output=True).returncode:
            missing.append(f"{engine} does not work here (`{engine} info` tells why)")
        else:
            return engine
    raise Refused(f"cannot build images: {'; '.join(missing)}; install one of docker, podman, buildah")


def build_command(engine: str, kind: str, name: str, base: str, options: argparse.Namespace) -> list[str]:
    """The command that builds one image.

    Args:
        engine: docker, podman or buildah.
        kind: A key of BASES.
        name: The image's name with its tag.
        base: The image to build on.
        options: As parsed.
    """
    command = [engine, "build"]
    if engine != "docker":
        command += ["--layers", "--format", "docker"]  # OCI's own format has no HEALTHCHECK
    if options.network:
        command += ["--network", options.network]
    for secret, path in (("pip_conf", options.pip_conf), ("ca_bundle", options.ca_bundle)):
        if path:
            command += ["--secret", f"id={secret},src={path}"]
    arguments = {"BASE": base, "VERSION": options.tag, "REVISION": revision(), "CREATED": created()}
    if kind == "train" and options.torch_index:
        arguments["TORCH_INDEX"] = options.torch_index
    for key, value in arguments.items():
        command += ["--build-arg", f"{key}={value}"]
    return [*command, "-f", str(DOCKER / f"{kind}.Dockerfile"), "-t", name, str(ROOT)]


def revision() -> str:
    """The commit that is built, with -modified where files differ from it."""
    return _git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=-modified") or "unknown"


def created() -> str:
    """When that commit was made: a build of the same commit has the same labels."""
    return _git("log", "-1", "--format=%cI") or "1970-01-01T00:00:00Z"


def size_mb(engine: str, image: str) -> float:
    """Size of an image on disk, 10^6 bytes."""
    if engine == "buildah":
        found = json.loads(_output([engine, "images", "--json", image]))
        value = found[0]["size"]
        number, unit = value.split()
        return float(number) * {"KB": 1e-3, "MB": 1.0, "GB": 1e3}[unit]
    return int(_output([engine, "image", "inspect", "--format", "{{.Size}}", image])) / 1e6


def keep_table(sizes: dict[str, float], table: Path) -> None:
    """Write the sizes between the marks of a Markdown file; images that were not built keep their line."""
    text = table.read_text()
    found = TABLE.search(text)
    assert found is not None
    lines = {line.split("|")[1].strip(): line for line in found[0].splitlines()[2:]}
    for kind, size in sizes.items():
        limit = f"{LIMIT_MB[kind]} MB" if kind in LIMIT_MB else ""
        lines[kind] = f"| {kind} | {size:.0f} MB | {limit} |"
    head = "| image | without its base | at most |\n| --- | --- | --- |\n"
    rows = "".join(lines[kind] + "\n" for kind in BASES if kind in lines)
    table.write_text(TABLE.sub(lambda _: head + rows, text))


def build(options: argparse.Namespace) -> None:
    """Build the images, print and keep their sizes."""
    if options.tag == "latest" or not TAG.fullmatch(options.tag):
        raise Refused(f"--tag {options.tag}: give a version; a tag like latest says nothing about what runs")
    engine = find_engine(options.engine)
    bases = pins()
    sizes: dict[str, float] = {}
    for kind in options.images or BASES:
        base = (options.triton_base if kind == "triton" else options.base) or bases[BASES[kind]]
        name = f"{options.registry.rstrip('/') + '/' if options.registry else ''}mlites/{kind}:{options.tag}"
        print(f"{name}: building with {engine}", flush=True)
        if subprocess.run(build_command(engine, kind, name, base, options)).returncode:
            raise Refused(f"{name}: the build failed; its last lines tell why")
        sizes[kind] = size_mb(engine, name) - size_mb(engine, base)
    for kind, size in sizes.items():
        limit = LIMIT_MB.get(kind)
        verdict = f", {'MORE than the' if size > limit else 'at most'} {limit} MB" if limit else ""
        print(f"{kind}: {size:.0f} MB without its base{verdict}")
    if options.sizes:
        keep_table(sizes, options.sizes)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the images of mlites.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"of {', '.join(BASES)}; default: all")
    parser.add_argument("--engine", choices=["docker", "podman", "buildah"], help="default: the first that works")
    parser.add_argument("--tag", default=version(), help="default: the package's version, %(default)s")
    parser.add_argument("--registry", default="", help="goes before the names: registry.example.com/team")
    parser.add_argument(
        "--base", help="Debian image with Python 3.11 or newer; default: PYTHON_BASE of docker/pins.env"
    )
    parser.add_argument("--triton-base", help="image with tritonserver; default: TRITON_BASE of docker/pins.env")
    parser.add_argument("--torch-index", default="", help="package index for PyTorch; default: the one pip uses")
    parser.add_argument("--network", help="of the build, as the engine takes it: host")
    parser.add_argument("--pip-conf", type=Path, help="pip.conf for the build; it does not come into the image")
    parser.add_argument("--ca-bundle", type=Path, help="certificates for pip; they do not come into the image")
    parser.add_argument("--sizes", type=Path, help="Markdown file whose table of sizes is brought up to date")
    options = parser.parse_args(arguments)
    if unknown := set(options.images) - set(BASES):
        raise Refused(f"no such image: {', '.join(sorted(unknown))}; there are {', '.join(BASES)}")
    for path in (options.pip_conf, options.ca_bundle, options.sizes):
        if path and not path.is_file():
            raise Refused(f"no such file: {path}")
    return options


def main(arguments: list[str]) -> int:
    """Build; what keeps it from that is one line and exit code 2."""
    try:
        build(parse(arguments))
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _git(*arguments: str) -> str:
    if not shutil.which("git"):
        return ""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Refused(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1:] or 'failed'}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
