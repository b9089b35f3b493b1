import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from mlites.errors import InputError
from mlites.files import canonical_json
from mlites.storage import MissingObject, PreconditionFailed, Store, fetch, parse_uri, remote_digest


@pytest.fixture
def in_environment(seaweedfs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in seaweedfs.items():
        monkeypatch.setenv(name, value)


def test_bytes_come_back_as_they_went(store: Store) -> None:
    for data in (b"", b"\0\xff", bytes(range(256)) * 30_000):
        store.put("one", data)
        assert store.get("one") == data
        stat = store.stat("one")
        assert (stat.size, stat.sha256) == (len(data), sha256(data).hexdigest())


def test_a_missing_object_is_one_line_with_its_address(store: Store) -> None:
    for ask in (store.get, store.stat):
        with pytest.raises(MissingObject) as caught:
            ask("nowhere")
        assert str(caught.value) == f"S3 at {store.endpoint}: {store.uri}/nowhere does not exist; check the name"


def test_only_the_first_of_two_writers_creates(store: Store) -> None:
    store.put("one", b"first", if_absent=True)
    with pytest.raises(PreconditionFailed, match="written by another"):
        store.put("one", b"second", if_absent=True)
    assert store.get("one") == b"first"


def test_an_etag_admits_one_successor(store: Store) -> None:
    etag = store.put("one", b"first")
    assert store.stat("one").etag == etag
    later = store.put("one", b"second", if_match=etag)
    with pytest.raises(PreconditionFailed):
        store.put("one", b"third", if_match=etag)
    assert (store.get("one"), store.stat("one").etag) == (b"second", later)


@pytest.mark.parametrize("attempt", range(5))
def test_a_race_has_one_winner(store: Store, attempt: int) -> None:
    def write(number: int) -> bool:
        try:
            store.put("one", str(number).encode(), if_absent=True)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert won.count(True) == 1
    assert store.get("one") == str(won.index(True)).encode()


class CutFirstAnswer(BaseHTTPRequestHandler):
    """Hands requests to SeaweedFS, and breaks the connection instead of passing on the first answer to a PUT."""

    target = ("", 0)
    cut: ClassVar[list[bytes]] = []

    def do_PUT(self) -> None:
        self._pass_on(cut_first=True)

    def do_HEAD(self) -> None:
        self._pass_on(cut_first=False)

    def _pass_on(self, cut_first: bool) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        head = f"{self.command} {self.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in self.headers.items())
        with socket.create_connection(self.target) as upstream:
            upstream.sendall(
                head.replace("Expect: 100-continue\r\n", "").encode() + b"Connection: close\r\n\r\n" + body
            )
            answer = b"".join(iter(lambda: upstream.recv(65536), b""))
        self.close_connection = True
        if cut_first and not self.cut:
            self.cut.append(answer)
        else:
            self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_retry_after_a_lost_answer_is_no_defeat(seaweedfs: dict[str, str], store: Store) -> None:
    host, port = seaweedfs["MLITES_S3_ENDPOINT"].removeprefix("http://").split(":")
    handler = type("Handler", (CutFirstAnswer,), {"target": (host, int(port)), "cut": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            through = Store(store.uri, {**seaweedfs, "MLITES_S3_ENDPOINT": f"http://127.0.0.1:{server.server_port}"})
            through.put("one", b"mine", if_absent=True)
        finally:
            server.shutdown()
            thread.join()
    assert b" 200 OK" in handler.cut[0]  # the first attempt had succeeded
    assert store.get("one") == b"mine"


def test_files_travel_whole(store: Store, tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "deep" / "b"
    source.write_bytes(bytes(range(251)) * 20_000)
    store.put_file("file", source)
    store.get_file("file", target)
    assert target.read_bytes() == source.read_bytes()
    with pytest.raises(MissingObject):
        store.get_file("other", target)
    assert target.read_bytes() == source.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def test_keys_are_listed_below_the_prefix_of_the_store(store: Store) -> None:
    for key in ("b", "a/2", "a/1"):
        store.put(key, b"")
    assert store.keys() == ["a/1", "a/2", "b"]
    assert store.keys("a/") == ["a/1", "a/2"]
    store.delete("b")
    store.delete("b")
    assert store.keys("b") == []


def test_listing_goes_past_the_first_page(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.put(f"many/{number:04}", b""), range(1005)))
    assert store.keys("many/") == [f"many/{number:04}" for number in range(1005)]


def test_a_document_is_found_by_the_digest_of_its_canonical_json(store: Store) -> None:
    value = {"b": [1, 2.5, None, "ü"], "a": True}
    digest = store.put_document(value)
    assert digest == sha256('{"a":true,"b":[1,2.5,null,"ü"]}'.encode()).hexdigest()
    assert store.get_document(digest) == value


def test_an_altered_document_is_refused(store: Store) -> None:
    digest = store.put_document({"a": 1})
    store.put(f"documents/{digest}.json", b'{"a":2}')
    with pytest.raises(InputError, match="was altered; delete it and run again"):
        store.get_document(digest)
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        store.get_document("../store")


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_folder_comes_back_whole_and_replaces_the_target(store: Store, tmp_path: Path) -> None:
    files = {"model.onnx": b"weights", "deep/er/card.json": b"{}"}
    store.put_folder("models/x", folder_of(tmp_path / "out", files))
    target = folder_of(tmp_path / "in", {"old": b"old"})
    store.get_folder("models/x", target)
    assert contents(target) == files
    manifest = json.loads(store.get("models/x/manifest.json"))
    assert manifest["files"]["model.onnx"] == {"sha256": sha256(b"weights").hexdigest(), "size": 7}


def test_a_folder_without_its_manifest_does_not_exist(store: Store, tmp_path: Path) -> None:
    store.put("models/half/model.onnx", b"weights")
    with pytest.raises(MissingObject, match=r"models/half/manifest\.json does not exist"):
        store.get_folder("models/half", tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_a_damaged_folder_is_refused_and_the_target_left_alone(store: Store, tmp_path: Path) -> None:
    store.put_folder("x", folder_of(tmp_path / "out", {"a": b"right", "b": b"b"}))
    store.put("x/a", b"wrong")
    target = folder_of(tmp_path / "in", {"old": b"old"})
    with pytest.raises(InputError, match="x/a does not match its manifest; publish it again"):
        store.get_folder("x", target)
    assert contents(target) == {"old": b"old"}


def test_a_folder_written_again_replaces_the_first(store: Store, tmp_path: Path) -> None:
    store.put_folder("x", folder_of(tmp_path / "one", {"a": b"1", "b": b"1"}))
    store.put_folder("x", folder_of(tmp_path / "two", {"a": b"2"}))
    store.get_folder("x", tmp_path / "in")
    assert contents(tmp_path / "in") == {"a": b"2"}


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out", ""])
def test_a_manifest_cannot_write_outside_the_target(store: Store, tmp_path: Path, name: str) -> None:
    entry = {"sha256": sha256(b"x").hexdigest(), "size": 1}
    store.put("x/manifest.json", canonical_json({"files": {name: entry}}))
    with pytest.raises(InputError, match="unsafe file name"):
        store.get_folder("x", tmp_path / "in")
    assert list(tmp_path.iterdir()) == []


def test_a_file_named_manifest_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"manifest\.json: this name belongs to the store; rename the file"):
        store.put_folder("x", folder_of(tmp_path / "out", {"manifest.json": b""}))


def test_verify_sees_one_changed_byte(store: Store) -> None:
    store.put("one", b"right")
    store.verify("one", sha256(b"right").hexdigest(), 5)
    store.put("one", b"wrong")
    with pytest.raises(InputError, match="is damaged: expected 5 bytes with sha256"):
        store.verify("one", sha256(b"right").hexdigest(), 5)


def test_all_who_ask_get_the_same_identity(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: store.identity(), range(8)))
    assert ids == {store.identity()}
    assert len(ids.pop()) == 32


@pytest.mark.usefixtures("in_environment")
def test_fetch_takes_an_object_or_all_below_a_prefix(store: Store, tmp_path: Path) -> None:
    store.put("data/x.csv", b"table")
    store.put("data/images/cat/1.png", b"cat")
    assert fetch(f"{store.uri}/data/x.csv", tmp_path / "a").read_bytes() == b"table"
    folder = fetch(f"{store.uri}/data/", tmp_path / "b")
    assert folder == tmp_path / "b" / "data"
    assert contents(folder) == {"x.csv": b"table", "images/cat/1.png": b"cat"}
    with pytest.raises(MissingObject, match="data/nothing does not exist"):
        fetch(f"{store.uri}/data/nothing", tmp_path / "c")
    with pytest.raises(InputError, match="name an object or a prefix"):
        fetch("s3://mlites", tmp_path / "c")
    assert not (tmp_path / "c").exists() or not list((tmp_path / "c").iterdir())


@pytest.mark.usefixtures("in_environment")
def test_remote_digest_changes_with_any_object(store: Store) -> None:
    store.put("data/a", b"1")
    first = remote_digest(f"{store.uri}/data")
    assert remote_digest(f"{store.uri}/data") == first
    store.put("data/a", b"2")
    second = remote_digest(f"{store.uri}/data")
    store.put("data-of-another", b"")
    assert first != second == remote_digest(f"{store.uri}/data")
    with pytest.raises(MissingObject):
        remote_digest(f"{store.uri}/dat")


def test_opening_creates_the_bucket_once(seaweedfs: dict[str, str]) -> None:
    with pytest.raises(InputError, match="no bucket 'brand-new'; create it or name another"):
        Store("s3://brand-new", seaweedfs).get("x")
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: Store.open("s3://brand-new/x", seaweedfs), range(4)))
    stores[0].put("one", b"1")
    assert stores[3].get("one") == b"1"


@pytest.mark.parametrize("uri", ["mlites", "s3:/mlites", "s3://", "s3://A", "s3://under_score/x", "https://mlites"])
def test_an_address_of_another_form_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match="expected s3://bucket or s3://bucket/prefix"):
        parse_uri(uri)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"MLITES_S3_ENDPOINT": "http://127.0.0.1:1"},
            r"S3 at http://127.0.0.1:1 does not answer .* set MLITES_S3_END",
        ),
        ({"AWS_ACCESS_KEY_ID": "stranger"}, r"refuses access to s3://mlites.*check AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": "hunter2secret"}, r"refuses access to s3://mlites.*check AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, r"half of the keys; set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"MLITES_S3_ENDPOINT": "127.0.0.1:8333"}, r"MLITES_S3_ENDPOINT must be http://host:port"),
        ({"MLITES_S3_ENDPOINT": "http://me:hunter2secret@h"}, r"MLITES_S3_ENDPOINT must be http://host:port"),
        ({"MLITES_S3_ENDPOINT": "http://h:99999"}, r"MLITES_S3_ENDPOINT must be http://host:port"),
        ({"AWS_REGION": "far away!"}, r"wrong AWS settings: .*far away"),
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_PROFILE": "nobody"},
            r"\(nobody\) could not be found",
        ),
    ],
)
def test_each_wrong_setting_gives_one_line_that_keeps_secrets(
    seaweedfs: dict[str, str], changes: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Store.open("s3://mlites", {**seaweedfs, **changes})
    text = str(caught.value)
    assert "\n" not in text
    assert seaweedfs["AWS_SECRET_ACCESS_KEY"] not in text and "hunter2secret" not in text


def test_without_keys_the_message_names_both(
    seaweedfs: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    keyless = {"MLITES_S3_ENDPOINT": seaweedfs["MLITES_S3_ENDPOINT"]}
    with pytest.raises(InputError, match="no keys; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        Store.open("s3://mlites", keyless)


def test_a_server_that_speaks_no_s3_is_named(seaweedfs: dict[str, str]) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(400)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            endpoint = f"http://127.0.0.1:{server.server_port}"
            with pytest.raises(InputError, match=f"S3 at {endpoint} answers 400 for s3://mlites"):
                Store.open("s3://mlites", {**seaweedfs, "MLITES_S3_ENDPOINT": endpoint})
        finally:
            server.shutdown()
            thread.join()
