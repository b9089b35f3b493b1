"""A connection to Kubeflow Pipelines: kfp.Client with our own settings and errors."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import kfp
import kfp_server_api

from mlites.errors import InputError
from pipelines.cluster.access import Access
from pipelines.cluster.wire import Wire


class Client(kfp.Client):  # type: ignore[misc]
    """kfp.Client that takes its settings from an `Access` alone, and whose every failure is a `ClusterError`."""

    def __init__(self, access: Access) -> None:
        """Connect.

        Raises:
            ClusterError: no connection, or no API of Kubeflow Pipelines there.
            InputError: a Kubeflow with several users, and no namespace.
        """
        self.access = access
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # a word on servers of 2022
            super().__init__(host=access.host, cookies=access.cookie)
        api = self._run_api.api_client
        api.rest_client = Wire(api.configuration, access)
        several = bool(self._healthz_api.healthz_service_get_healthz().multi_user)
        if several and not access.namespace:
            raise InputError(f"{access.host} serves several users: name yours with --namespace or MLITES_KFP_NAMESPACE")
        self.namespace: str | None = access.namespace if several else None
        self._context_setting["namespace"] = self.namespace or ""

    def _load_config(self, *_: Any) -> kfp_server_api.Configuration:
        """In place of kfp's guesses: kubeconfig, Google's tokens, a token that it reads once."""
        config = kfp_server_api.Configuration(host=self.access.host)
        config.ssl_ca_cert = str(self.access.ca) if self.access.ca else None
        if self.access.bearer():
            config.api_key["authorization"] = ""
            config.api_key_prefix["authorization"] = "Bearer"
            config.refresh_api_key_hook = self._refresh
        return config

    def _refresh(self, config: kfp_server_api.Configuration) -> None:
        config.api_key["authorization"] = self.access.bearer()

    def _load_context_setting_or_default(self) -> None:
        """Not from a file in the user's home: what it holds would be invisible here."""
        self._context_setting = {"namespace": ""}

    def get_kfp_healthz(self, *_: Any) -> kfp_server_api.V2beta1GetHealthzResponse:
        """The constructor's question, which is asked once the time limits are set."""
        return kfp_server_api.V2beta1GetHealthzResponse(multi_user=False)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """kfp.Client prints relative links on standard output; the command line tells addresses itself."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
