"""A recipe becomes a pipeline version, an experiment and a run in Kubeflow; what is there already is used again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kfp_server_api

from mlites.errors import InputError
from mlites.files import digest_file, digest_folder
from mlites.storage import Store
from pipelines.cluster.client import Client, quietly
from pipelines.cluster.errors import ClusterError
from pipelines.cluster.package import Package, local_paths

CONFLICT = 409


def publish(client: Client, package: Package) -> tuple[str, str]:
    """Put the pipeline and this version of it into Kubeflow, unless they are there.

    Returns:
        Ids of pipeline and version.
    """
    pipeline = _get_or_create(lambda: _find_pipeline(client, package.name), lambda: _create_pipeline(client, package))
    version = _get_or_create(
        lambda: _find_version(client, pipeline, package.version), lambda: _create_version(client, pipeline, package)
    )
    return pipeline, version


def experiment_of(client: Client, name: str) -> str:
    """Id of the experiment of this name, which is made if there is none."""

    def find() -> str | None:
        answer = client.list_experiments(filter=_named(name), namespace=client.namespace)
        found = [one for one in answer.experiments or [] if one.display_name == name]
        return str(found[0].experiment_id) if found else None

    def create() -> str:
        with quietly():
            return str(client.create_experiment(name, namespace=client.namespace).experiment_id)

    return _get_or_create(find, create)


def start_run(
    client: Client, package: Package, run: str, parameters: dict[str, Any], service_account: str | None = None
) -> str:
    """Start a run of the package; returns its id.

    Args:
        client: the connection.
        package: the pipeline.
        run: name of the run, under which its page is published.
        parameters: those that differ from their defaults.
        service_account: of the tasks' pods; None takes Kubeflow's own.
    """
    pipeline, version = publish(client, package)
    experiment = experiment_of(client, package.name)
    with quietly():
        started = client.run_pipeline(
            experiment,
            run,
            params={"run": run, **parameters},
            pipeline_id=pipeline,
            version_id=version,
            service_account=service_account,
        )
    return str(started.run_id)


def check_parameters(package: Package, given: dict[str, Any]) -> None:
    """Refuse parameters that the pipeline does not have, and files that a cluster cannot see.

    Raises:
        InputError: names them, and what to do.
    """
    known = sorted(set(package.parameters) - {"run"})
    for name in given:
        if name not in known:
            raise InputError(f"--param {name}: no such parameter; there are {', '.join(known)}")
    for name, path in local_paths({**package.parameters, **given}).items():
        raise InputError(
            f"{name} is {path}, a file of this machine, which a cluster cannot see: add --upload to put it into the "
            f"store, or name it in S3 with --param {name}=s3://bucket/key"
        )


def upload_inputs(store: Store, parameters: dict[str, Any]) -> dict[str, str]:
    """Put files of this machine into the store, under their content's digest; what is there is not sent again.

    Returns:
        The parameters that named them, with addresses in the store.

    Raises:
        InputError: there is no such file or folder.
    """
    return {name: _upload(store, name, Path(path)) for name, path in local_paths(parameters).items()}


def _upload(store: Store, name: str, path: Path) -> str:
    if not path.exists():
        raise InputError(f"{name}: {path} does not exist; name a file or folder, or s3://bucket/key")
    digest = digest_folder(path) if path.is_dir() else digest_file(path)
    target = f"inputs/{digest[:32]}/{path.name}"
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    there = set(store.keys(target))
    for file in files:
        key = f"{target}/{file.relative_to(path).as_posix()}" if path.is_dir() else target
        if key not in there:
            store.put_file(key, file)
    return f"{store.uri}/{target}"


def _get_or_create(find: Callable[[], str | None], create: Callable[[], str]) -> str:
    """Another may create it between our look and our try: then theirs is as good."""
    if found := find():
        return found
    try:
        return create()
    except ClusterError as error:
        if error.status == CONFLICT and (found := find()):
            return found
        raise


def _find_pipeline(client: Client, name: str) -> str | None:
    answer = client.list_pipelines(filter=_named(name), namespace=client.namespace)
    found = [one for one in answer.pipelines or [] if one.display_name == name]
    return str(found[0].pipeline_id) if found else None


def _create_pipeline(client: Client, package: Package) -> str:
    """The pipeline without a version: KFP's upload would name the first one after the pipeline."""
    body = kfp_server_api.V2beta1Pipeline(
        display_name=package.name, name=package.name, namespace=client.namespace, description="made by mlites"
    )
    return str(client.pipelines.pipeline_service_create_pipeline(pipeline=body).pipeline_id)


def _find_version(client: Client, pipeline: str, name: str) -> str | None:
    answer = client.list_pipeline_versions(pipeline, filter=_named(name))
    found = [one for one in answer.pipeline_versions or [] if one.display_name == name]
    return str(found[0].pipeline_version_id) if found else None


def _create_version(client: Client, pipeline: str, package: Package) -> str:
    with quietly():
        made = client.upload_pipeline_version(str(package.path), package.version, pipeline_id=pipeline)
    return str(made.pipeline_version_id)


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "string_value": name}]})
