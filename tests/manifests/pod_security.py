"""Kubernetes' pod-security standard "restricted", written down again, and a read-only root file system besides.

It follows the standard's own table (kubernetes.io, "Pod Security Standards"), not the admission controller's code, so
that a mistake in a manifest is found by somebody else than its author.
"""

from typing import Any

from tests.manifests.overlays import containers

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SYSCTLS = {"net.ipv4.ip_local_port_range", "net.ipv4.ping_group_range", "kernel.shm_rmid_forced"}


def faults(pod: dict[str, Any]) -> list[str]:
    """What the standard does not allow of a pod or pod template, in words."""
    spec = pod["spec"]
    whole = spec.get("securityContext", {})
    found = [f"spec.{field} is set" for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    found += [
        f"volume {one['name']} is of a forbidden kind" for one in spec.get("volumes", []) if _kind(one) not in VOLUMES
    ]
    found += [f"sysctl {one['name']}" for one in whole.get("sysctls", []) if one["name"] not in SYSCTLS]
    if whole.get("windowsOptions", {}).get("hostProcess"):
        found.append("hostProcess is set")
    for one in containers(pod):
        found += [f"{one['name']}: {fault}" for fault in _container(one, whole)]
    return found


def _kind(volume: dict[str, Any]) -> str:
    return next(key for key in volume if key != "name")


def _container(container: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    own = container.get("securityContext", {})
    both = {**whole, **own}
    found = []
    if own.get("privileged"):
        found.append("privileged")
    if own.get("allowPrivilegeEscalation") is not False:
        found.append("allowPrivilegeEscalation is not false")
    if not both.get("runAsNonRoot"):
        found.append("runAsNonRoot is not true")
    if both.get("runAsUser", 1) == 0:
        found.append("runAsUser is 0")
    if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        found.append("no seccomp profile")
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        found.append("capabilities are not dropped")
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        found.append("capabilities are added")
    if own.get("procMount", "Default") != "Default":
        found.append("procMount")
    if any(port.get("hostPort") for port in container.get("ports", [])):
        found.append("hostPort")
    if both.get("appArmorProfile", {}).get("type", "RuntimeDefault") == "Unconfined":
        found.append("AppArmor is off")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        checks = container.get(probe, {})
        if any("host" in checks.get(way, {}) for way in ("httpGet", "tcpSocket")):
            found.append(f"{probe} names a host")
    if own.get("readOnlyRootFilesystem") is not True:
        found.append("the root file system can be written")
    return found
