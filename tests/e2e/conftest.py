"""A folder to work in, as a user's: the command line runs there, with servers of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SERVER_VARIABLES = ("MLITES_S3_ENDPOINT", "MLITES_STORE", "MLITES_TRITON_URL", "MLITES_TRITON_GRPC", "MLITES_HOME")


@dataclass(frozen=True)
class Workplace:
    """A user's folder and environment."""

    folder: Path
    environment: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        """The command line, as the console script starts it."""
        return [sys.executable, "-c", "from pipelines.cli import main; main()", *arguments]

    def mlites(self, *arguments: str, timeout: float = 900) -> "subprocess.CompletedProcess[str]":
        """Run the command line to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def servers(self) -> dict[str, str]:
        """Variables that lead others to this workplace's servers."""
        program = "import json; from mlites import stack; print(json.dumps(stack.environment()))"
        command = [sys.executable, "-c", program]
        result = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=True
        )
        variables: dict[str, str] = json.loads(result.stdout)
        return variables


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """A folder with the embedded stack up; the stack goes down at the end."""
    folder = tmp_path_factory.mktemp("workplace")
    environment = {key: value for key, value in os.environ.items() if key not in SERVER_VARIABLES}
    place = Workplace(folder, environment)
    try:
        up = place.mlites("stack", "up")
        assert up.returncode == 0, up.stderr
        yield place
    finally:
        place.mlites("stack", "down")
