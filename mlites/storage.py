"""S3, and nothing else here knows boto3: objects, documents and whole folders, verified by SHA-256."""

import functools
import hashlib
import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from mlites.errors import InputError
from mlites.files import canonical_json, digest_bytes, digest_file, digest_json, file_digests, new_folder

DEFAULT_STORE = "s3://mlites"  # where MLITES_STORE names none
MANIFEST = "manifest.json"
CHUNK_BYTES = 1 << 20
ATTEMPTS = 4
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
MISSING_CODES = {"404", "NoSuchKey", "NotFound"}
LOST_CODES = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
REGION_CODES = {"AuthorizationHeaderMalformed", "PermanentRedirect", "301", "IllegalLocationConstraintException"}
CLOCK_CODES = {"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"}
REFUSED_CODES = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}


class MissingObject(InputError):
    """No object has this key."""


class StoreFailed(OSError):
    """The server failed, or the connection did, also when asked again; what was asked for may or may not be done."""


class PreconditionFailed(Exception):
    """A conditional write lost: the object already exists, or is no longer the one that was read."""


@dataclass(frozen=True)
class ObjectStat:
    """What S3 says about an object without sending it.

    Attributes:
        size: bytes.
        etag: changes with the content.
        sha256: None where mlites did not write it.
        modified: when it was written, to the second.
    """

    size: int
    etag: str
    sha256: str | None
    modified: datetime


class Store:
    """A bucket, or a prefix in it, as ``s3://bucket/prefix``. Safe to use from several threads.

    The endpoint comes from MLITES_S3_ENDPOINT (without it: AWS), keys and region from the usual AWS variables.
    """

    def __init__(self, uri: str, environment: Mapping[str, str] = os.environ) -> None:
        self.bucket, self.prefix = parse_uri(uri)
        self.endpoint = s3_endpoint(environment)
        self._client = _client(self.endpoint, environment)

    @classmethod
    def open(cls, uri: str, environment: Mapping[str, str] = os.environ) -> "Store":
        """Connect, and create the bucket if it is missing.

        Args:
            uri: ``s3://bucket`` or ``s3://bucket/prefix``.
            environment: where endpoint and keys are looked up.

        Raises:
            InputError: no connection, no credentials, no access, or not an s3:// URI.
        """
        store = cls(uri, environment)
        store._create_bucket()
        return store

    @property
    def uri(self) -> str:
        """``s3://bucket`` or ``s3://bucket/prefix``, without a slash at the end."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        """Write an object whole and return its etag.

        Args:
            key: below the store's prefix.
            data: the object's bytes.
            if_absent: only if no object has this key.
            if_match: only if the object still has this etag.

        Raises:
            PreconditionFailed: another writer was first.
        """
        condition = {"IfNoneMatch": "*"} if if_absent else {"IfMatch": if_match} if if_match else {}
        writer = uuid.uuid4().hex
        try:
            return self._put(key, data, digest_bytes(data), {"writer": writer}, **condition)
        except PreconditionFailed:
            # A retry after a lost answer finds our own write in its way; that is no defeat.
            with self._faults(key):
                head = self._client.head_object(Bucket=self.bucket, Key=self._key(key))
                if head["Metadata"].get("writer") == writer:
                    return str(head["ETag"])
            raise

    def put_file(self, key: str, path: Path) -> str:
        """Write a file as one object, streamed, with its SHA-256 as metadata; returns its etag."""
        digest = digest_file(path)
        with path.open("rb") as file:
            return self._put(key, file, digest, {})

    def get(self, key: str) -> bytes:
        """Read an object whole.

        Raises:
            MissingObject: no object has this key.
        """
        return self.get_with_etag(key)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """Read an object whole, with the etag that its bytes had.

        Raises:
            MissingObject: no object has this key.
        """
        content: list[bytes] = []
        etag = self._download(key, content.clear, content.append)
        return b"".join(content), etag

    def get_file(self, key: str, path: Path) -> None:
        """Download an object; the path appears when all bytes are there and match the digest they were written with."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                self._download(key, lambda: file.truncate(file.seek(0)), file.write)
                file.flush()
                os.fsync(file.fileno())
            part.chmod(0o644)
            part.replace(path)
        except BaseException:
            part.unlink()
            raise

    def keys(self, prefix: str = "") -> list[str]:
        """Keys that start with this text, sorted, as the other methods take them."""
        strip = len(self._key(""))
        with self._faults(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(prefix))
            return sorted(item["Key"][strip:] for page in pages for item in page.get("Contents", []))

    def get_json(self, key: str) -> Any:
        """Read a JSON value that mlites wrote.

        Raises:
            MissingObject: no object has this key.
        """
        return json.loads(self.get(key))

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the store, without its bytes passing here.

        Raises:
            MissingObject: no object has the source's key.
        """
        with self._faults(source):
            self._client.copy_object(
                Bucket=self.bucket, Key=self._key(target), CopySource={"Bucket": self.bucket, "Key": self._key(source)}
            )

    def stat(self, key: str) -> ObjectStat:
        """Size, etag and recorded digest of an object.

        Raises:
            MissingObject: no object has this key.
        """
        with self._faults(key):
            head = self._client.head_object(Bucket=self.bucket, Key=self._key(key))
        return ObjectStat(
            int(head["ContentLength"]), str(head["ETag"]), head["Metadata"].get("sha256"), head["LastModified"]
        )

    def delete(self, key: str) -> None:
        """Remove an object; removing none is no error."""
        with self._faults(key):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def delete_all(self, prefix: str) -> None:
        """Remove all objects whose key begins like this."""
        for key in self.keys(prefix):
            self.delete(key)

    def verify(self, key: str, sha256: str, size: int) -> None:
        """Read an object back and compare it with what it must be.

        Raises:
            InputError: its bytes are others.
        """
        found, length = hashlib.sha256(), 0

        def start() -> None:
            nonlocal found, length
            found, length = hashlib.sha256(), 0

        def take(chunk: bytes) -> None:
            nonlocal length
            found.update(chunk)
            length += len(chunk)

        self._download(key, start, take, check=False)
        if length != size or found.hexdigest() != sha256:
            raise InputError(
                f"{self._place(key)} is damaged: expected {size} bytes with sha256 {sha256}, "
                f"found {length} with {found.hexdigest()}; delete it and write it again"
            )

    def put_document(self, value: Any) -> str:
        """Write a JSON value under its own digest and return that digest."""
        digest = digest_json(value)
        self.put(f"documents/{digest}.json", canonical_json(value))
        return digest

    def get_document(self, digest: str) -> Any:
        """Read a JSON value by its digest, verified.

        Raises:
            MissingObject: no such document.
            InputError: its bytes are not those the digest names.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise InputError(f"a document is named by 64 hexadecimal digits, got {digest[:80]!r}")
        data = self.get(f"documents/{digest}.json")
        if digest_bytes(data) != digest:
            raise InputError(f"{self._place(f'documents/{digest}.json')} was altered; delete it and run again")
        return json.loads(data)

    def put_folder(self, prefix: str, folder: Path) -> None:
        """Write every file below a folder, read each back, and write ``manifest.json`` last.

        The same folder again costs one look at each object. Another folder that was there before is gone while this
        runs: readers need the manifest.
        """
        files: dict[str, dict[str, Any]] = {
            name: {"sha256": digest, "size": (folder / name).stat().st_size}
            for name, digest in file_digests(folder).items()
        }
        if MANIFEST in files:
            raise InputError(f"{folder / MANIFEST}: this name belongs to the store; rename the file")
        manifest, content = f"{prefix}/{MANIFEST}", canonical_json({"files": files})
        if self._holds(prefix, files, content):
            return
        self.delete(manifest)
        for name, entry in files.items():
            self.put_file(f"{prefix}/{name}", folder / name)
            self.verify(f"{prefix}/{name}", entry["sha256"], entry["size"])
        self.put(manifest, content)

    def get_folder(self, prefix: str, target: Path) -> None:
        """Download what ``put_folder`` wrote; the target appears whole, verified, and replaces what was there.

        Raises:
            MissingObject: no manifest, so the folder was never written to its end.
            InputError: a file does not match the manifest.
        """
        key = f"{prefix}/{MANIFEST}"
        files = json.loads(self.get(key))["files"]
        with new_folder(target) as work:
            for name, entry in files.items():
                path = _inside(work, name, self._place(key))
                self.get_file(f"{prefix}/{name}", path)
                if path.stat().st_size != entry["size"] or digest_file(path) != entry["sha256"]:
                    raise InputError(f"{self._place(f'{prefix}/{name}')} does not match its manifest; publish it again")

    def verify_folder(self, prefix: str) -> dict[str, str]:
        """Read back every object of what ``put_folder`` wrote; the sha256 of each, by name.

        Raises:
            MissingObject: no manifest, or an object is gone.
            InputError: an object is damaged.
        """
        files = json.loads(self.get(f"{prefix}/{MANIFEST}"))["files"]
        for name, entry in files.items():
            self.verify(f"{prefix}/{name}", entry["sha256"], entry["size"])
        return {name: entry["sha256"] for name, entry in files.items()}

    def identity(self) -> str:
        """A random id that belongs to this store for life, made by whoever asks first."""
        try:
            return str(json.loads(self.get("store.json"))["id"])
        except MissingObject:
            pass
        mine = uuid.uuid4().hex
        try:
            self.put("store.json", canonical_json({"format": "mlites-store/1", "id": mine}), if_absent=True)
            return mine
        except PreconditionFailed:
            return str(json.loads(self.get("store.json"))["id"])

    def _put(self, key: str, body: bytes | BinaryIO, digest: str, metadata: dict[str, str], **condition: Any) -> str:
        with self._faults(key):
            answer = self._client.put_object(
                Bucket=self.bucket,
                Key=self._key(key),
                Body=body,
                Metadata={"sha256": digest, **metadata},
                **condition,
            )
        return str(answer["ETag"])

    def _download(self, key: str, start: Callable[[], Any], take: Callable[[bytes], Any], *, check: bool = True) -> str:
        """Hand the object's bytes on and return its etag; what breaks off in the middle starts again.

        Args:
            key: below the store's prefix.
            start: called before each attempt, to forget what came before.
            take: called with each piece.
            check: fail at the end if the bytes are not those that were written.
        """
        for attempt in range(ATTEMPTS):
            with self._faults(key):
                start()
                found = hashlib.sha256()
                answer = self._client.get_object(Bucket=self.bucket, Key=self._key(key))
                try:
                    for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
                        found.update(chunk)
                        take(chunk)
                except (BotoCoreError, OSError):  # boto3 asks again until the body begins, and not after
                    if attempt + 1 == ATTEMPTS:
                        raise
                    time.sleep(0.1 * 2**attempt)
                    continue
            expected = answer["Metadata"].get("sha256")
            if check and expected and found.hexdigest() != expected:
                raise InputError(
                    f"{self._place(key)} is damaged: its bytes do not match the sha256 it was written with"
                )
            return str(answer["ETag"])
        raise AssertionError("unreachable")

    def _holds(self, prefix: str, files: dict[str, dict[str, Any]], manifest: bytes) -> bool:
        try:
            if self.get(f"{prefix}/{MANIFEST}") != manifest:
                return False
            stats = {name: self.stat(f"{prefix}/{name}") for name in files}
        except MissingObject:
            return False
        return all(
            (stats[name].sha256, stats[name].size) == (one["sha256"], one["size"]) for name, one in files.items()
        )

    def _create_bucket(self) -> None:
        with self._faults(""):
            try:
                self._client.head_bucket(Bucket=self.bucket)
                return
            except ClientError as error:
                if _code(error) not in MISSING_CODES | {"NoSuchBucket"}:
                    raise
            region = self._client.meta.region_name
            elsewhere = self.endpoint is None and region != "us-east-1"
            place = {"CreateBucketConfiguration": {"LocationConstraint": region}} if elsewhere else {}
            try:
                self._client.create_bucket(Bucket=self.bucket, **place)
            except ClientError as error:
                if _code(error) not in {"BucketAlreadyExists", "BucketAlreadyOwnedByYou"}:
                    raise
                self._client.head_bucket(Bucket=self.bucket)

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _place(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._key(key)}"

    @contextmanager
    def _faults(self, key: str) -> Iterator[None]:
        """Turn what boto3 raises into one line that names the place and what to set."""
        server = f"S3 at {self.endpoint or 'AWS'}"
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError):
            raise InputError(f"{server}: no keys; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
        except ClientError as error:
            code = _code(error)
            if code in LOST_CODES:
                raise PreconditionFailed(f"{self._place(key)} was written by another; read it again") from None
            if code == "NoSuchBucket":
                raise InputError(f"{server}: no bucket {self.bucket!r}; create it or name another") from None
            if code in MISSING_CODES:
                raise MissingObject(f"{server}: {self._place(key)} does not exist; check the name") from None
            if code in REFUSED_CODES:
                raise InputError(
                    f"{server} refuses access to {self._place(key)} ({code}); check AWS_ACCESS_KEY_ID, "
                    "AWS_SECRET_ACCESS_KEY and the rights of that key"
                ) from None
            if code in REGION_CODES:
                raise InputError(f"{server}: {code}; set AWS_REGION to the region of {self.bucket!r}") from None
            if code in CLOCK_CODES:
                raise InputError(
                    f"{server}: its clock and this machine's are too far apart ({code}); set them"
                ) from None
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500) < 500:
                raise InputError(
                    f"{server} answers {code} for {self._place(key)}; set MLITES_S3_ENDPOINT to a server of S3 objects"
                ) from None
            raise StoreFailed(
                f"{server} answers {code} for {self._place(key)}, asked {ATTEMPTS} times; look at its log and try again"
            ) from None
        except (ConnectionClosedError, ResponseStreamingError, ReadTimeoutError, IncompleteReadError) as error:
            raise StoreFailed(
                f"{server} breaks off on {self._place(key)} ({type(error).__name__}), asked {ATTEMPTS} times; "
                "look at its log and the network, then try again"
            ) from None
        except BotoCoreError as error:
            raise InputError(
                f"{server} does not answer ({type(error).__name__}); start it (mlites stack up) or set "
                "MLITES_S3_ENDPOINT to where it runs"
            ) from None


def fetch(uri: str, target: Path) -> Path:
    """Download an object, or everything below a prefix, into a folder; a local path stays where it is.

    Args:
        uri: ``s3://bucket/key``, ``s3://bucket/prefix`` or a local path.
        target: folder for the result, which keeps the last part of its name.

    Returns:
        The file, or the folder of files, in ``target``.

    Raises:
        MissingObject: neither an object nor anything below.
    """
    if not uri.startswith("s3://"):
        return Path(uri)
    whole = Store(uri)
    if not whole.prefix:
        raise InputError(f"{uri}: name an object or a prefix in the bucket")
    parent, _, name = whole.prefix.rpartition("/")
    store = Store(f"s3://{whole.bucket}/{parent}")
    try:
        store.get_file(name, _inside(target, name, uri))
        return target / name
    except MissingObject:
        keys = [key for key in whole.keys("") if not key.endswith("/")]
        if not keys:
            raise
    with new_folder(target / name) as work:
        for key in keys:
            whole.get_file(key, _inside(work, key, uri))
    return target / name


def remote_digest(uri: str) -> str:
    """Digest of the names, sizes and etags of an object or of everything below a prefix, without downloading it.

    Raises:
        MissingObject: neither an object nor anything below.
    """
    whole = Store(uri)
    parent, _, name = whole.prefix.rpartition("/")
    store = Store(f"s3://{whole.bucket}/{parent}")
    keys = [key for key in store.keys(name) if key == name or key.startswith(f"{name}/")]
    if not keys:
        raise MissingObject(f"{uri} does not exist; name an object or a prefix in the bucket")
    stats = {key: store.stat(key) for key in keys}
    return digest_json({key: [stat.size, stat.etag] for key, stat in stats.items()})


def parse_uri(uri: str) -> tuple[str, str]:
    """Bucket and prefix (may be empty, no slash at its ends) of an s3:// URI.

    >>> parse_uri("s3://mlites/repository/")
    ('mlites', 'repository')

    Raises:
        InputError: not of that form.
    """
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not BUCKET.fullmatch(bucket):
        raise InputError(f"expected s3://bucket or s3://bucket/prefix with a bucket in lower case, got {uri[:200]!r}")
    return bucket, prefix.strip("/")


def s3_endpoint(environment: Mapping[str, str]) -> str | None:
    """MLITES_S3_ENDPOINT, checked; None means AWS.

    Raises:
        InputError: not http(s)://host[:port].
    """
    endpoint = environment.get("MLITES_S3_ENDPOINT", "").rstrip("/")
    if not endpoint:
        return None
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in ("http", "https") and parts.hostname and not parts.path and not parts.query
        good = good and (parts.port or 1) and "@" not in parts.netloc
    except ValueError:
        good = False
    if not good:  # not echoed: it may hold a password
        raise InputError("MLITES_S3_ENDPOINT must be http://host:port or https://host:port, without keys or path")
    return endpoint


def _client(endpoint: str | None, environment: Mapping[str, str]) -> Any:
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    try:
        return _shared_client(endpoint, region, *(environment.get(name) or None for name in names))
    except PartialCredentialsError:
        raise InputError("S3: half of the keys; set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
    except BotoCoreError as error:
        raise InputError(f"S3: wrong AWS settings: {error}; correct AWS_PROFILE or the AWS variables") from None


@functools.lru_cache(maxsize=4)
def _shared_client(
    endpoint: str | None, region: str, key: str | None, secret: str | None, token: str | None, profile: str | None
) -> Any:
    """One client for all stores with the same settings: making one takes 0.2 s."""
    # Proxies are for the world, not for a server on this machine.
    local = urlsplit(endpoint or "").hostname in ("127.0.0.1", "localhost", "::1")
    config = Config(
        s3={"addressing_style": "path"},
        connect_timeout=5,
        read_timeout=60,
        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
        # Servers other than AWS often lack the newer checksums; every object carries its SHA-256 instead.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies={} if local else None,
    )
    return boto3.session.Session(profile_name=None if key else profile).client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        config=config,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        aws_session_token=token,
    )


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _inside(folder: Path, name: str, source: str) -> Path:
    """The path of a name from outside, which must stay in the folder."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise InputError(f"{source}: refuses the unsafe file name {name[:200]!r}")
    return folder.joinpath(*parts)
