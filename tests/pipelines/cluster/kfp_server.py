"""A server that speaks KFP's v2beta1 REST API: what it keeps and sends are kfp-server-api's own models.

It is as strict as the real one: unknown fields and parameters are refused, names are unique, namespaces belong to a
Kubeflow with several users. A run's tasks are those of the pipeline that was uploaded; each look at a run takes it one
task further. Faults can be put in the way of any request.
"""

import copy
import email.parser
import email.policy
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api
import yaml

API = "/apis/v2beta1"
LOGIN_PAGE = b"<!DOCTYPE html><html><head><title>Log in to\n Your Account</title></head><body>Email</body></html>"
SENT = api.ApiClient(api.Configuration())


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class Fault:
    """What happens in place of an answer.

    Attributes:
        kind: a status, or timeout, truncated, half, html, redirect, reset, empty.
        method: of the requests that meet it.
        path: regular expression on their path.
        times: how many do.
        after: the request is carried out all the same, and its answer lost.
    """

    kind: str
    method: str = ".*"
    path: str = ".*"
    times: int = 1
    after: bool = False


@dataclass
class KfpServer:
    """State and behaviour; `served` puts it on a port."""

    several_users: bool = False
    token: str | None = None
    cookie: str | None = None
    outcome: str = "deployed"  # rejected, failed, canceled, unchanged
    cached: tuple[str, ...] = ()
    faults: list[Fault] = field(default_factory=list)
    slow_seconds: float = 4.0
    address: str = ""
    pipelines: dict[str, api.V2beta1Pipeline] = field(default_factory=dict)
    versions: dict[str, api.V2beta1PipelineVersion] = field(default_factory=dict)
    experiments: dict[str, api.V2beta1Experiment] = field(default_factory=dict)
    runs: dict[str, api.V2beta1Run] = field(default_factory=dict)
    schedules: dict[str, api.V2beta1RecurringRun] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    before: Callable[[str, str], None] | None = None  # called with each request, as another client would come between
    lock: threading.RLock = field(default_factory=threading.RLock)
    _count: int = 0

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, content: str) -> Any:
        """One request; returns what is sent as JSON."""
        for pattern, (verb, handler) in ROUTES:
            match = re.fullmatch(API + pattern, path)
            if match and verb == method:
                return handler(self, query, _Body(body, content), *match.groups())
        raise Refusal(404, "Not Found")

    def healthz(self, query: dict[str, str], body: "_Body") -> Any:
        return api.V2beta1GetHealthzResponse(multi_user=self.several_users)

    def create_pipeline(self, query: dict[str, str], body: "_Body") -> Any:
        made = body.model(api.V2beta1Pipeline)
        self._own(made.namespace)
        self._unique(self.pipelines, made.display_name, "Pipeline")
        made.pipeline_id, made.created_at = self._id("pipeline"), _now()
        self.pipelines[made.pipeline_id] = made
        return made

    def list_pipelines(self, query: dict[str, str], body: "_Body") -> Any:
        found, token = self._page(self.pipelines, query, {"namespace", "sort_by"})
        return api.V2beta1ListPipelinesResponse(pipelines=found, next_page_token=token, total_size=len(self.pipelines))

    def upload_version(self, query: dict[str, str], body: "_Body") -> Any:
        _known(query, {"name", "display_name", "pipelineid", "description", "tags"})
        pipeline, name = query["pipelineid"], query["name"]
        if pipeline not in self.pipelines:
            raise Refusal(404, f"Pipeline {pipeline} not found")
        mine = {key: one for key, one in self.versions.items() if one.pipeline_id == pipeline}
        self._unique(mine, name, "Pipeline version")
        spec, platform = [*yaml.load_all(body.file(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)), None][:2]
        made = api.V2beta1PipelineVersion(
            pipeline_id=pipeline,
            pipeline_version_id=self._id("version"),
            display_name=name,
            name=name,
            created_at=_now(),
            pipeline_spec={"pipeline_spec": spec, "platform_spec": platform},
        )
        self.versions[made.pipeline_version_id] = made
        return made

    def list_versions(self, query: dict[str, str], body: "_Body", pipeline: str) -> Any:
        mine = {key: one for key, one in self.versions.items() if one.pipeline_id == pipeline}
        found, token = self._page(mine, query, {"sort_by"})
        return api.V2beta1ListPipelineVersionsResponse(pipeline_versions=found, next_page_token=token)

    def create_experiment(self, query: dict[str, str], body: "_Body") -> Any:
        made = body.model(api.V2beta1Experiment)
        self._own(made.namespace)
        self._unique(self.experiments, made.display_name, "Experiment")
        made.experiment_id, made.created_at = self._id("experiment"), _now()
        self.experiments[made.experiment_id] = made
        return made

    def list_experiments(self, query: dict[str, str], body: "_Body") -> Any:
        self._own(query.get("namespace"))
        found, token = self._page(self.experiments, query, {"namespace", "sort_by"})
        return api.V2beta1ListExperimentsResponse(experiments=found, next_page_token=token)

    def create_run(self, query: dict[str, str], body: "_Body") -> Any:
        made = body.model(api.V2beta1Run)
        if made.experiment_id not in self.experiments:
            raise Refusal(404, f"Experiment {made.experiment_id} not found")
        self._version(made.pipeline_version_reference, made.runtime_config)
        made.run_id, made.created_at, made.state = self._id("run"), _now(), "PENDING"
        made.storage_state = "AVAILABLE"
        self.runs[made.run_id] = made
        return made

    def get_run(self, query: dict[str, str], body: "_Body", run_id: str) -> Any:
        run = self.runs.get(run_id)
        if run is None:
            raise Refusal(404, f"Run {run_id} not found")
        self._advance(run)
        return run

    def create_schedule(self, query: dict[str, str], body: "_Body") -> Any:
        made = body.model(api.V2beta1RecurringRun)
        self._version(made.pipeline_version_reference, made.runtime_config)
        trigger = made.trigger
        if (trigger.cron_schedule is None) == (trigger.periodic_schedule is None):
            raise Refusal(400, "Exactly one of cron and periodic schedule is needed")
        if trigger.cron_schedule and len(str(trigger.cron_schedule.cron).split()) != 6:
            raise Refusal(400, f"Schedule cron is not a supported format: {trigger.cron_schedule.cron}")
        if not 1 <= int(made.max_concurrency) <= 10:
            raise Refusal(400, "The max concurrency of the job is out of range. Support 1-10")
        made.recurring_run_id, made.created_at = self._id("schedule"), _now()
        made.max_concurrency = str(made.max_concurrency)  # int64 travels as text
        made.status = "ENABLED" if made.mode == "ENABLE" else "DISABLED"
        if trigger.periodic_schedule:
            trigger.periodic_schedule.interval_second = str(trigger.periodic_schedule.interval_second)
        self.schedules[made.recurring_run_id] = made
        return made

    def list_schedules(self, query: dict[str, str], body: "_Body") -> Any:
        self._own(query.get("namespace"))
        found, token = self._page(self.schedules, query, {"namespace", "sort_by", "experiment_id"})
        return api.V2beta1ListRecurringRunsResponse(recurring_runs=found, next_page_token=token)

    def enable_schedule(self, query: dict[str, str], body: "_Body", schedule: str) -> Any:
        self._schedule(schedule).status = "ENABLED"
        return {}

    def disable_schedule(self, query: dict[str, str], body: "_Body", schedule: str) -> Any:
        self._schedule(schedule).status = "DISABLED"
        return {}

    def delete_schedule(self, query: dict[str, str], body: "_Body", schedule: str) -> Any:
        del self.schedules[self._schedule(schedule).recurring_run_id]
        return {}

    def tasks(self, run: api.V2beta1Run) -> list[str]:
        """Names of the tasks that this run gets to, in order."""
        spec = self.versions[run.pipeline_version_reference.pipeline_version_id].pipeline_spec["pipeline_spec"]
        names = list(_executor_tasks(spec))
        last = {"deployed": {"decline"}, "rejected": {"deploy"}}.get(self.outcome, set())
        ordered = ["check-inputs", *(name for name in names if name not in ("check-inputs", "notify")), "notify"]
        if self.outcome == "unchanged":
            return ["check-inputs", "notify"]
        if self.outcome in ("failed", "canceled"):
            return ["check-inputs", "prepare-data", "train-teacher", "notify"]
        return [name for name in ordered if name not in last]

    def _advance(self, run: api.V2beta1Run) -> None:
        """One task ends, the next begins."""
        names = self.tasks(run)
        details = (run.run_details.task_details if run.run_details else None) or self._groups(run)
        done = [one for one in details if one.display_name in names]
        if done and done[-1].state == "RUNNING":
            failed = self.outcome == "failed" and done[-1].display_name == "train-teacher"
            done[-1].state, done[-1].end_time = ("FAILED" if failed else "SUCCEEDED"), _now() + timedelta(seconds=4)
            if done[-1].display_name in self.cached:
                details.append(self._detail(run, "executor", "SKIPPED", parent=done[-1].task_id))
        if len(done) < len(names):
            details += [self._detail(run, f"{names[len(done)]}-driver", "SUCCEEDED")]
            details += [self._detail(run, names[len(done)], "RUNNING")]
            run.state = "RUNNING"
        else:
            run.state = {"failed": "FAILED", "canceled": "CANCELED"}.get(self.outcome, "SUCCEEDED")
            run.finished_at = _now()
        run.run_details = api.V2beta1RunDetails(task_details=details)

    def _groups(self, run: api.V2beta1Run) -> list[Any]:
        return [self._detail(run, name, "RUNNING") for name in ("root", "root-driver", "exit-handler-1", "condition-2")]

    def _detail(self, run: api.V2beta1Run, name: str, state: str, parent: str | None = None) -> Any:
        return api.V2beta1PipelineTaskDetail(
            run_id=run.run_id,
            task_id=self._id("task"),
            display_name=name,
            create_time=_now(),
            start_time=_now(),
            state=state,
            parent_task_id=parent,
            child_tasks=[api.PipelineTaskDetailChildTask(pod_name=f"{run.run_id}-{name}")],
        )

    def _version(self, reference: Any, config: Any) -> None:
        version = self.versions.get(reference.pipeline_version_id)
        if version is None or version.pipeline_id != reference.pipeline_id:
            raise Refusal(404, "Pipeline version not found")
        inputs = version.pipeline_spec["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
        for name in config.parameters:
            if name not in inputs:
                raise Refusal(400, f"parameter provided is not required by pipeline: {name}")

    def _schedule(self, schedule: str) -> api.V2beta1RecurringRun:
        if schedule not in self.schedules:
            raise Refusal(404, f"RecurringRun {schedule} not found")
        return self.schedules[schedule]

    def _own(self, namespace: str | None) -> None:
        if namespace and not self.several_users:
            raise Refusal(400, "In single-user mode, a request must not have a namespace")
        if self.several_users and namespace != "team-a":
            raise Refusal(403, f"User is not authorized in namespace {namespace!r}")

    def _unique(self, kept: dict[str, Any], name: str, what: str) -> None:
        if any(one.display_name == name for one in kept.values()):
            raise Refusal(409, f"{what} with name {name} already exists")

    def _page(self, kept: dict[str, Any], query: dict[str, str], more: set[str]) -> tuple[list[Any], str]:
        _known(query, {"page_token", "page_size", "filter", *more})
        found = list(kept.values())
        for one in json.loads(query.get("filter") or "{}").get("predicates", []):
            if one["operation"] not in (1, "EQUALS") or one["key"] != "display_name":
                raise Refusal(400, f"cannot filter by {one}")
            wanted = one.get("string_value", one.get("stringValue"))
            found = [each for each in found if each.display_name == wanted]
        first, size = int(query.get("page_token") or 0), int(query.get("page_size") or 10)
        return found[first : first + size], str(first + size) if first + size < len(found) else ""

    def _id(self, kind: str) -> str:
        self._count += 1
        return f"{kind}-{self._count:04d}-4b0e-9d51"

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets, if it meets one."""
        for one in self.faults:
            if one.times > 0 and re.fullmatch(one.method, method) and re.search(one.path, path):
                one.times -= 1
                return one
        return None


class _Body:
    """What a request carries."""

    def __init__(self, content: bytes, kind: str) -> None:
        self.content, self.kind = content, kind

    def model(self, model: type[Any]) -> Any:
        """The body as one of the API's models; unknown fields are refused."""
        document = json.loads(self.content)
        _check_fields(document, model)
        return SENT.deserialize(_Answer(json.dumps(document)), model)

    def file(self) -> bytes:
        """The one file of a form."""
        head = f"Content-Type: {self.kind}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + self.content)
        (part,) = [one for one in message.iter_parts() if one.get_param("name", header="content-disposition")]
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        return content


@dataclass
class _Answer:
    data: str


ROUTES: list[tuple[str, tuple[str, Callable[..., Any]]]] = [
    ("/healthz", ("GET", KfpServer.healthz)),
    ("/pipelines", ("POST", KfpServer.create_pipeline)),
    ("/pipelines", ("GET", KfpServer.list_pipelines)),
    ("/pipelines/upload_version", ("POST", KfpServer.upload_version)),
    ("/pipelines/([^/]+)/versions", ("GET", KfpServer.list_versions)),
    ("/experiments", ("POST", KfpServer.create_experiment)),
    ("/experiments", ("GET", KfpServer.list_experiments)),
    ("/runs", ("POST", KfpServer.create_run)),
    ("/runs/([^/:]+)", ("GET", KfpServer.get_run)),
    ("/recurringruns", ("POST", KfpServer.create_schedule)),
    ("/recurringruns", ("GET", KfpServer.list_schedules)),
    ("/recurringruns/([^/:]+):enable", ("POST", KfpServer.enable_schedule)),
    ("/recurringruns/([^/:]+):disable", ("POST", KfpServer.disable_schedule)),
    ("/recurringruns/([^/:]+)", ("DELETE", KfpServer.delete_schedule)),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ClassVar[KfpServer]

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.state.lock:
            self.state.requests.append((self.command, parts.path))
            fault = self.state.fault(self.command, parts.path)
        if fault and not fault.after:
            self._spoil(fault, b'{"message":"it did not work"}')
            return
        if self.state.before:
            self.state.before(self.command, parts.path)
        status, answer = self._carry_out(parts.path, query, body)
        if fault:
            self._spoil(fault, answer)
        else:
            self._send(status, answer)

    do_GET = do_POST = do_DELETE = do_PATCH = handle_any

    def _carry_out(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, bytes]:
        try:
            self._check_user()
            with self.state.lock:
                content = self.headers.get("Content-Type", "")
                found = self.state.answer(self.command, path, query, body, content)
                return 200, json.dumps(SENT.sanitize_for_serialization(copy.deepcopy(found))).encode()
        except Refusal as error:
            told = api.GoogleRpcStatus(code=error.status, message=error.message, details=[])
            return error.status, json.dumps(SENT.sanitize_for_serialization(told)).encode()

    def _check_user(self) -> None:
        wanted, given = self.state.token, self.headers.get("authorization", "")
        if wanted is not None and given != f"Bearer {wanted}":
            raise Refusal(401, "Request header error: there is no user identity header")
        if self.state.cookie is not None and self.headers.get("Cookie") != self.state.cookie:
            raise Refusal(401, "Request header error: there is no user identity header")

    def _spoil(self, fault: Fault, answer: bytes) -> None:
        if fault.kind.isdecimal():
            self._send(int(fault.kind), answer)
        elif fault.kind == "timeout":
            time.sleep(self.state.slow_seconds)
            self.close_connection = True
        elif fault.kind == "truncated":
            self._send(200, answer, length=len(answer) + 100)
            self.close_connection = True
        elif fault.kind == "half":
            self._send(200, answer[: len(answer) // 2])
        elif fault.kind == "html":
            self._send(200, LOGIN_PAGE, kind="text/html")
        elif fault.kind == "redirect":
            self._send(302, b"", location="https://login.example/dex/auth?state=abc")
        else:
            self.close_connection = True

    def _send(
        self,
        status: int,
        body: bytes,
        *,
        length: int | None = None,
        kind: str = "application/json",
        location: str = "",
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""


@contextmanager
def served(state: KfpServer, tls: ssl.SSLContext | None = None) -> Iterator[KfpServer]:
    """The server on a free port of this machine, until the block ends."""
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign,assignment]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    state.address = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _executor_tasks(spec: dict[str, Any]) -> Iterator[str]:
    for component in [spec["root"], *spec["components"].values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in spec["components"][task["componentRef"]["name"]]:
                yield name


def _check_fields(document: Any, model: type[Any]) -> None:
    unknown = set(document) - set(model.attribute_map.values())
    if unknown:
        raise Refusal(400, f"unknown field {sorted(unknown)[0]!r} in {model.__name__}")
    for name, kind in model.openapi_types.items():
        value = document.get(model.attribute_map[name])
        nested = getattr(api.models, kind, None)
        if isinstance(value, dict) and nested is not None and hasattr(nested, "attribute_map"):
            _check_fields(value, nested)


def _known(query: dict[str, str], names: set[str]) -> None:
    if unknown := set(query) - names:
        raise Refusal(400, f"unknown parameter {sorted(unknown)[0]!r}")


def _now() -> datetime:
    return datetime.now(UTC)
