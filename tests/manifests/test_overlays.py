"""What a cluster gets is valid, locked down, and fits together."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from components import images
from mlites import __version__
from tests.manifests import pod_security
from tests.manifests.overlays import (
    MANIFESTS,
    OVERLAYS,
    containers,
    documents,
    matches,
    named,
    of_kind,
    pod_templates,
)

VERSIONS = ("1.35", "1.36", "1.37")  # the last three minor versions of Kubernetes
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "schemas").glob("*.json")}
WRITES_ONE = {"get", "update", "patch", "delete"}  # verbs that may be tied to names
STEP = {"pipelines.kubeflow.org/v2_component": "true"}  # KFP's label of every pod of a run

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@every_overlay
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_to_the_letter(overlay: str, version: str) -> None:
    for one in documents(overlay):
        if one["kind"] in SCHEMAS:
            jsonschema.validate(one, SCHEMAS[one["kind"]])
        else:
            kubernetes_validate.validate(one, version, strict=True)


def test_those_are_the_last_three_minor_versions() -> None:
    latest = kubernetes_validate.latest_version().split(".")[:2]
    assert VERSIONS[-1] == ".".join(latest)
    assert [int(one.split(".")[1]) for one in VERSIONS] == [int(latest[1]) - 2, int(latest[1]) - 1, int(latest[1])]


@every_overlay
def test_every_pod_is_restricted_and_its_root_read_only(overlay: str) -> None:
    pods = list(pod_templates(overlay))
    assert len(pods) >= 2
    assert {place: faults for place, pod in pods if (faults := pod_security.faults(pod))} == {}


def test_the_check_of_pods_finds_each_fault() -> None:
    good = next(pod for place, pod in pod_templates("kind") if place == "Deployment/mlites-triton")
    for change, words in FAULTS:
        pod = json.loads(json.dumps(good))
        change(pod["spec"])
        assert any(words in fault for fault in pod_security.faults(pod)), words


FAULTS: list[tuple[Any, str]] = [
    (lambda spec: spec.update(hostNetwork=True), "hostNetwork"),
    (lambda spec: spec["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "volume x"),
    (lambda spec: spec["securityContext"].pop("runAsNonRoot"), "runAsNonRoot"),
    (lambda spec: spec["securityContext"].update(runAsUser=0), "runAsUser is 0"),
    (lambda spec: spec["securityContext"].pop("seccompProfile"), "seccomp"),
    (lambda spec: spec["containers"][0]["securityContext"].pop("capabilities"), "not dropped"),
    (lambda spec: spec["initContainers"][0]["securityContext"].update(privileged=True), "privileged"),
    (lambda spec: spec["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"), "allowPrivilege"),
    (lambda spec: spec["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False), "can be written"),
    (lambda spec: spec["containers"][0]["ports"][0].update(hostPort=80), "hostPort"),
    (lambda spec: spec["containers"][0]["livenessProbe"]["httpGet"].update(host="elsewhere"), "names a host"),
]


@every_overlay
def test_namespaces_of_ours_enforce_restricted(overlay: str) -> None:
    for one in of_kind(overlay, "Namespace"):
        levels = {
            one["metadata"]["labels"][f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "warn", "audit")
        }
        assert levels == {"restricted"}


@every_overlay
def test_no_right_is_a_wildcard_and_those_on_known_objects_name_them(overlay: str) -> None:
    roles = of_kind(overlay, "Role", "ClusterRole")
    assert {role["kind"] for role in roles} == {"Role"}
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            if set(rule["resources"]) & {"secrets", "configmaps"}:
                assert rule["resourceNames"] and set(rule["verbs"]) <= WRITES_ONE
            assert not set(rule["verbs"]) & {"escalate", "bind", "impersonate"}
    for binding in of_kind(overlay, "RoleBinding"):
        assert all(subject["kind"] == "ServiceAccount" for subject in binding["subjects"])


@every_overlay
def test_every_image_is_of_the_build_or_by_digest(overlay: str) -> None:
    ours = re.compile(rf"mlites/(train|validate|deploy|triton|seaweedfs):{re.escape(__version__)}")
    digest = re.compile(r".+@sha256:[0-9a-f]{64}")
    used = {one["image"] for _, pod in pod_templates(overlay) for one in containers(pod)}
    assert all(ours.fullmatch(image) or digest.fullmatch(image) for image in used)
    assert images.DEPLOY in used


@every_overlay
def test_every_container_says_what_it_needs_and_long_ones_when_they_are_well(overlay: str) -> None:
    for place, pod in pod_templates(overlay):
        for one in containers(pod):
            needs = one["resources"]
            assert needs["requests"].keys() == needs["limits"].keys() == {"cpu", "memory", "ephemeral-storage"}, place
            assert needs["requests"]["memory"] == needs["limits"]["memory"] or overlay != "production", place
        for one in pod["spec"]["containers"]:
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= one.keys(), place
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert all("sizeLimit" in one["emptyDir"] for one in pod["spec"]["volumes"] if "emptyDir" in one)


@every_overlay
def test_what_refers_to_pods_finds_them(overlay: str) -> None:
    pods = {place: pod for place, pod in pod_templates(overlay)}
    labels = [pod["metadata"]["labels"] for pod in pods.values()]
    for service in of_kind(overlay, "Service"):
        chosen = [
            pod for pod in pods.values() if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        ]
        assert len(chosen) == 1, service["metadata"]["name"]
        names = {port["name"] for one in chosen[0]["spec"]["containers"] for port in one["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for budget in of_kind(overlay, "PodDisruptionBudget"):
        assert any(matches(budget["spec"]["selector"], one) for one in labels)
    for scaler in of_kind(overlay, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert "replicas" not in named(overlay, target["kind"], target["name"])["spec"], "the two would fight"
    for place, pod in pods.items():
        for spread in pod["spec"].get("topologySpreadConstraints", []):
            assert matches(spread["labelSelector"], pod["metadata"]["labels"]), place


@every_overlay
def test_variables_name_keys_that_stand_in_the_config_maps(overlay: str) -> None:
    for place, pod in pod_templates(overlay):
        for one in containers(pod):
            for source in [variable["valueFrom"] for variable in one.get("env", []) if "valueFrom" in variable]:
                if "configMapKeyRef" in source:
                    reference = source["configMapKeyRef"]
                    assert reference["key"] in named(overlay, "ConfigMap", reference["name"])["data"], place
                else:
                    assert source["secretKeyRef"]["name"] == "mlites-s3", place


@every_overlay
def test_steps_find_account_servers_and_launcher_in_their_own_namespace(overlay: str) -> None:
    namespace = "mlites" if overlay == "production" else "kubeflow"
    servers = named(overlay, "ConfigMap", "mlites-servers", namespace)["data"]
    for key in (
        "MLITES_S3_ENDPOINT",
        "AWS_REGION",
        "MLITES_TRITON_URL",
        "MLITES_TRITON_GRPC",
        "MLITES_TRITON_REPLICAS",
    ):
        assert servers[key]
    assert servers.items() <= {**named(overlay, "ConfigMap", "mlites-servers")["data"]}.items()
    launcher = named(overlay, "ConfigMap", "kfp-launcher", namespace)["data"]
    provider = yaml.safe_load(launcher["providers"])["s3"]["default"]
    assert servers["MLITES_S3_ENDPOINT"].removeprefix("http://").removeprefix("https://") == provider["endpoint"]
    assert provider["disableSSL"] is servers["MLITES_S3_ENDPOINT"].startswith("http://")
    assert provider["credentials"]["secretRef"]["secretName"] == "mlites-s3"
    assert named(overlay, "ServiceAccount", "mlites-pipeline", namespace)


@every_overlay
def test_no_manifest_holds_a_secret(overlay: str) -> None:
    assert of_kind(overlay, "Secret") == []


@every_overlay
def test_nothing_comes_in_or_goes_out_unless_it_is_named(overlay: str) -> None:
    deny = named(overlay, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in of_kind(overlay, "NetworkPolicy"):
        for rule in [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]:
            assert rule, "an empty rule allows everything"
            assert all(peer for peer in rule.get("from", []))
    ports = {port["port"] for rule in _rules(overlay, STEP, "egress") if "to" not in rule for port in rule["ports"]}
    assert ports <= {443, 6443}


@every_overlay
@pytest.mark.parametrize("target", ["mlites-triton", "mlites-triton-sandbox"])
def test_steps_reach_triton_and_strangers_do_not(overlay: str, target: str) -> None:
    namespace = "mlites" if overlay == "production" else "kubeflow"
    labels = {"app.kubernetes.io/name": target}
    for port in (8000, 8001, 8002):
        assert _may_enter(overlay, labels, STEP, namespace, port)
        assert _may_leave(overlay, STEP, namespace, labels, "mlites", port)
        assert not _may_enter(overlay, labels, {"app": "stranger"}, namespace, port)
    assert not _may_enter(overlay, labels, STEP, "default", 8000)
    assert not _may_enter(overlay, labels, STEP, namespace, 22)


@pytest.mark.parametrize("overlay", ["kind", "minikube"])
def test_seaweedfs_is_reached_by_triton_and_steps_alone(overlay: str) -> None:
    store = {"app.kubernetes.io/name": "mlites-seaweedfs"}
    triton = next(pod for place, pod in pod_templates(overlay) if place == "Deployment/mlites-triton")["metadata"][
        "labels"
    ]
    for labels, namespace in ((triton, "mlites"), (STEP, "kubeflow")):
        assert _may_enter(overlay, store, labels, namespace, 8333)
        assert _may_leave(overlay, labels, namespace, store, "mlites", 8333)
    assert not _may_enter(overlay, store, {"app": "stranger"}, "default", 8333)
    assert not _may_enter(overlay, store, triton, "mlites", 9333)


def test_production_has_no_seaweedfs_and_the_local_ones_have() -> None:
    assert [named(overlay, "StatefulSet", "mlites-seaweedfs") for overlay in ("kind", "minikube")]
    assert of_kind("production", "StatefulSet") == []


def test_production_scales_on_the_time_in_the_queue() -> None:
    scaler = named("production", "HorizontalPodAutoscaler", "mlites-triton")["spec"]
    metric = scaler["metrics"][0]["pods"]["metric"]["name"]
    rules = named("production", "PrometheusRule", "mlites-triton")["spec"]["groups"][0]["rules"]
    assert [rule for rule in rules if rule.get("record") == metric and "nv_inference_queue_duration_us" in rule["expr"]]
    adapter = yaml.safe_load((MANIFESTS / "base" / "monitoring" / "prometheus-adapter.yaml").read_text())
    assert adapter["rules"]["custom"][0]["name"]["matches"] == metric
    assert scaler["minReplicas"] >= 2


def test_a_triton_that_restarts_settles_the_channels_then_loads_what_stands_in_the_repository() -> None:
    deployment = named("production", "Deployment", "mlites-triton")["spec"]
    assert [one["name"] for one in deployment["template"]["spec"]["initContainers"]] == ["repository", "settle"]
    script = (MANIFESTS.parent / "docker" / "triton.sh").read_text()
    assert "--model-control-mode=explicit" in script and "--load-model='*'" in script
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_kubeflow_is_referred_to_at_one_release() -> None:
    files = [MANIFESTS / "kfp" / "kustomization.yaml", MANIFESTS / "kfp" / "cluster" / "kustomization.yaml"]
    references = [line for file in files for line in yaml.safe_load(file.read_text())["resources"]]
    assert {re.search(r"\?ref=([\d.]+)&", line)[1] for line in references} == {"2.17.0"}  # type: ignore[index]
    assert not [path for path in MANIFESTS.rglob("*.yaml") if "ghcr.io/kubeflow" in path.read_text()]


def _rules(overlay: str, labels: dict[str, str], way: str) -> Iterator[dict[str, Any]]:
    for policy in of_kind(overlay, "NetworkPolicy"):
        if matches(policy["spec"]["podSelector"], labels):
            yield from policy["spec"].get(way, [])


def _peer(peer: dict[str, Any], labels: dict[str, str], namespace: str, home: str) -> bool:
    if "ipBlock" in peer:
        return False
    place = {"kubernetes.io/metadata.name": namespace}
    same = matches(peer["namespaceSelector"], place) if "namespaceSelector" in peer else namespace == home
    return same and matches(peer.get("podSelector", {}), labels)


def _may_enter(overlay: str, target: dict[str, str], labels: dict[str, str], namespace: str, port: int) -> bool:
    return any(
        port in [one["port"] for one in rule["ports"]]
        and any(_peer(one, labels, namespace, "mlites") for one in rule["from"])
        for rule in _rules(overlay, target, "ingress")
    )


def _may_leave(
    overlay: str, labels: dict[str, str], namespace: str, target: dict[str, str], home: str, port: int
) -> bool:
    return any(
        port in [one["port"] for one in rule.get("ports", [{"port": port}])]
        and any(_peer(one, target, home, namespace) for one in rule.get("to", []))
        for rule in _rules(overlay, labels, "egress")
    )
