"""Every way that a connection to Kubeflow fails is one clear line; what can be tried again is."""

import base64
import json
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trustme

from mlites.errors import InputError
from pipelines.cluster import access as access_module
from pipelines.cluster.access import Access, find_access
from pipelines.cluster.client import Client
from pipelines.cluster.errors import ClusterError
from pipelines.cluster.package import Package
from pipelines.cluster.submit import publish, start_run
from tests.pipelines.cluster.kfp_server import Fault, KfpServer, served

EVERY_GET = 3  # tries


def _token(expires: float) -> str:
    parts = [{"alg": "none"}, {"exp": int(expires)}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(one).encode()).decode().rstrip("=") for one in parts) + ".c2ln"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("401", "it asks who you are (401); set MLITES_KFP_TOKEN_FILE, MLITES_KFP_TOKEN or MLITES_KFP_COOKIE"),
        ("403", "these credentials may not GET /apis/v2beta1/healthz: it did not work; ask for that right"),
        ("404", "there is no GET /apis/v2beta1/healthz (404): it did not work; check --host"),
        ("409", "conflicts with what is there (409): it did not work"),
        ("400", "it refuses GET /apis/v2beta1/healthz (400): it did not work"),
        ("500", "GET /apis/v2beta1/healthz failed there (500): it did not work; its ml-pipeline deployment's log"),
        ("503", "failed there (503)"),
        ("timeout", "no answer within 0.3 s (MLITES_KFP_TIMEOUT)"),
        ("truncated", "the answer broke off"),
        ("half", "the answer is no whole JSON document"),
        ("reset", "the answer broke off"),
        ("html", "a web page (Log in to Your Account) answers in its place, perhaps a login"),
        ("redirect", "it sends on to https://login.example/dex/auth, which looks like a login"),
    ],
)
def test_each_bad_answer_is_one_line_that_names_the_server(kfp_server: KfpServer, fault: str, says: str) -> None:
    kfp_server.faults = [Fault(fault, times=EVERY_GET)]
    with pytest.raises(ClusterError) as failed:
        Client(Access(kfp_server.address, timeout=0.3 if fault == "timeout" else 5))
    message = str(failed.value)
    assert message.startswith(f"Kubeflow Pipelines at {kfp_server.address}: ") and says in message
    assert "\n" not in message


def test_a_name_that_cannot_be_resolved_and_a_refused_connection_are_told_apart() -> None:
    with pytest.raises(ClusterError, match="this host name cannot be resolved; check --host"):
        Client(Access("http://kfp.invalid"))
    with pytest.raises(ClusterError, match="the connection is refused; is it up there"):
        Client(Access("http://127.0.0.1:9"))


@pytest.mark.parametrize("fault", ["503", "reset", "truncated", "half"])
def test_what_passes_is_asked_again_where_nothing_is_changed(kfp_server: KfpServer, fault: str) -> None:
    kfp_server.faults = [Fault(fault, times=EVERY_GET - 1)]
    Client(Access(kfp_server.address))
    assert len(kfp_server.requests) == EVERY_GET


@pytest.mark.parametrize("fault", ["timeout", "truncated", "reset", "503"])
def test_a_request_that_changes_something_is_sent_once_and_told_as_uncertain(
    kfp_server: KfpServer, package: Package, fault: str
) -> None:
    publish(Client(Access(kfp_server.address)), package)
    client = Client(Access(kfp_server.address, timeout=2 if fault == "timeout" else 30))
    kfp_server.faults = [Fault(fault, "POST", "/runs$", after=True)]
    with pytest.raises(ClusterError) as failed:
        start_run(client, package, "parts-1", {})
    assert len(kfp_server.runs) == 1  # it did start
    assert [path for method, path in kfp_server.requests if method == "POST"].count("/apis/v2beta1/runs") == 1
    if fault != "503":
        assert "it may have been carried out all the same" in str(failed.value)


def test_a_token_a_token_file_and_a_cookie_open_the_door(tmp_path: Path) -> None:
    with served(KfpServer(token="s3cr3t")) as server:
        Client(Access(server.address, token="s3cr3t"))
        with pytest.raises(ClusterError, match=r"it does not accept the token \(401\)") as failed:
            Client(Access(server.address, token="wr0ng"))
        assert "wr0ng" not in str(failed.value)
        (tmp_path / "token").write_text("s3cr3t\n")
        client = Client(Access(server.address, token_file=tmp_path / "token"))
        server.token = "renewed"
        (tmp_path / "token").write_text("renewed")  # as the kubelet does
        assert client.list_pipelines().pipelines == []
    with served(KfpServer(cookie="authservice_session=abc")) as server:
        Client(Access(server.address, cookie="authservice_session=abc"))
        with pytest.raises(ClusterError, match="it does not accept the cookie"):
            Client(Access(server.address, cookie="authservice_session=old"))


def test_an_expired_token_is_told_with_its_time() -> None:
    token = _token(time.time() - 60)
    with served(KfpServer(token="another")) as server:
        with pytest.raises(ClusterError, match=r"the token expired at 2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d UTC") as failed:
            Client(Access(server.address, token=token))
        assert token not in str(failed.value)
        with pytest.raises(ClusterError, match="it does not accept the token"):
            Client(Access(server.address, token=_token(time.time() + 600)))


def test_tls_is_checked_against_the_given_authorities(tmp_path: Path) -> None:
    ours, theirs = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.issue_cert("127.0.0.1").configure_cert(context)
    for authority, name in ((ours, "ours.pem"), (theirs, "theirs.pem")):
        authority.cert_pem.write_to_path(str(tmp_path / name))
    with served(KfpServer(), context) as server:
        Client(Access(server.address, ca=tmp_path / "ours.pem"))
        for ca in (None, tmp_path / "theirs.pem"):
            with pytest.raises(ClusterError, match=r"its certificate is not trusted \(.+\); give its authorities"):
                Client(Access(server.address, ca=ca))
        named = server.address.replace("127.0.0.1", "localhost")
        with pytest.raises(ClusterError, match=r"its certificate is not trusted .*localhost"):
            Client(Access(named, ca=tmp_path / "ours.pem"))
        with pytest.raises(ClusterError, match="the answer broke off"):
            Client(Access(server.address.replace("https", "http")))
    with served(KfpServer()) as server, pytest.raises(ClusterError, match="it does not speak TLS"):
        Client(Access(server.address.replace("http", "https")))


def test_a_kubeflow_with_several_users_wants_a_namespace() -> None:
    with served(KfpServer(several_users=True)) as server:
        with pytest.raises(InputError, match="serves several users: name yours with --namespace"):
            Client(Access(server.address))
        assert Client(Access(server.address, namespace="team-a")).namespace == "team-a"
    with served(KfpServer()) as server:
        assert Client(Access(server.address, namespace="team-a")).namespace is None  # for one user there are none


def test_settings_come_from_the_environment_and_options_before_it(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    environment = {
        "MLITES_KFP_HOST": "https://kfp.example/pipeline/",
        "MLITES_KFP_TOKEN": " t0ken ",
        "MLITES_KFP_CA": str(tmp_path / "ca.pem"),
        "MLITES_KFP_NAMESPACE": "team-a",
        "MLITES_KFP_TIMEOUT": "7.5",
    }
    found = find_access(environment=environment)
    assert found == Access(
        "https://kfp.example/pipeline", "t0ken", ca=tmp_path / "ca.pem", namespace="team-a", timeout=7.5
    )
    assert find_access("http://other:80", "team-b", environment=environment).host == "http://other:80"


def test_in_a_pod_the_service_account_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "namespace").write_text("team-a")
    (tmp_path / "token").write_text("projected")
    monkeypatch.setattr(access_module, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr(access_module, "PIPELINES_TOKEN", tmp_path / "token")
    found = find_access(environment={})
    assert (found.host, found.namespace, found.bearer()) == (access_module.IN_CLUSTER, "team-a", "projected")
    assert find_access("http://elsewhere", environment={}).bearer() == ""  # the token is for the cluster's own alone


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "where is Kubeflow Pipelines?"),
        ({"HOST": "kfp.example"}, "must be http(s)://host[:port][/path]"),
        ({"HOST": "http://user:pa55@kfp.example"}, "must be http(s)://host[:port][/path], without keys"),
        ({"HOST": "http://kfp.example:99999"}, "must be http(s)://"),
        ({"HOST": "http://h", "TOKEN": "a", "TOKEN_FILE": "b"}, "one of MLITES_KFP_TOKEN and MLITES_KFP_TOKEN_FILE"),
        ({"HOST": "http://h", "TOKEN": "two\nlines"}, "MLITES_KFP_TOKEN holds what no header may"),
        ({"HOST": "http://h", "TOKEN_FILE": "/none"}, "/none: cannot read the token"),
        ({"HOST": "http://h", "CA": "/none.pem"}, "--ca /none.pem: no such file"),
        ({"HOST": "http://h", "TIMEOUT": "soon"}, "MLITES_KFP_TIMEOUT must be seconds"),
        ({"HOST": "http://h", "TIMEOUT": "0"}, "MLITES_KFP_TIMEOUT must be seconds"),
    ],
)
def test_wrong_settings_are_one_line_without_their_secrets(variables: dict[str, str], says: str) -> None:
    with pytest.raises(InputError) as wrong:
        find_access(environment={f"MLITES_KFP_{name}": value for name, value in variables.items()})
    assert says in str(wrong.value) and "pa55" not in str(wrong.value) and "\n" not in str(wrong.value)


def test_the_command_line_ends_with_one_line_and_exit_code_1() -> None:
    command = [sys.executable, "-m", "pipelines.cli", "schedule", "list", "--host", "http://127.0.0.1:9"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "error: Kubeflow Pipelines at http://127.0.0.1:9: the connection is refused; is it up there, or its port "
        "forwarded?\n"
    )
