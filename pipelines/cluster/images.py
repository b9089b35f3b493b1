"""Which image a task runs in: the registry and the tag that the images were pushed with, never a tag that moves."""

import re

from mlites.errors import InputError

MOVING_TAGS = {"latest", "main", "master", "stable", "edge", "nightly", "dev", "develop", "snapshot"}
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
REGISTRY = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]+([._-]{1,2}[a-z0-9]+)*)*", re.IGNORECASE)


def place_image(image: str, registry: str | None, tag: str | None) -> str:
    """The name of one of our images in a registry.

    >>> place_image("mlites/train:1.0", "registry.example:5000/team", "1.0-ab12")
    'registry.example:5000/team/mlites/train:1.0-ab12'

    Args:
        image: as the component names it.
        registry: host, with a port and a path if need be; None leaves it to the cluster.
        tag: of all images of one build; None keeps the component's own.

    Raises:
        InputError: the registry or the tag cannot be one, or the tag moves.
    """
    if registry is not None and not REGISTRY.fullmatch(registry):
        raise InputError(f"--image-registry {registry!r}: expected host[:port][/path], such as registry.example/team")
    if tag is not None and not TAG.fullmatch(tag):
        raise InputError(
            f"--image-tag {tag!r}: expected letters, digits, '.', '_' and '-', at most 128; use what make images says"
        )
    if tag is not None and moves(tag):
        raise InputError(
            f"--image-tag {tag}: this tag moves, so that two runs of one pipeline could run different code; "
            "use the build's own"
        )
    name = image if tag is None else f"{image.rpartition(':')[0]}:{tag}"
    return name if registry is None else f"{registry}/{name}"


def moves(tag: str) -> bool:
    """Whether others may push another image under this tag tomorrow."""
    return tag.lower() in MOVING_TAGS


def is_pinned(image: str) -> bool:
    """Whether an image is named by a digest, or by a tag that stays.

    >>> [is_pinned(name) for name in ("a/b:1.2", "a/b", "a/b:latest", "host:5000/a/b", "a/b@sha256:" + "0" * 64)]
    [True, False, False, False, True]
    """
    name, at, digest = image.partition("@")
    if at:
        return bool(DIGEST.fullmatch(digest))
    tag = name.rpartition("/")[2].partition(":")[2]
    return bool(tag) and not moves(tag)
