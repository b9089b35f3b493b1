"""What the user sees of a run: a live line on a terminal, plain lines elsewhere."""

import threading
import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.status import Status

QUIET_SECONDS = 15.0  # between two lines on the way, off a terminal


class Progress:
    """Counts the steps of a run and says which is under way. Its methods may be called from any thread."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._console = Console(highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._done = 0
        self._expected: int | None = None
        self._step = "starting"
        self._quiet_until = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._status = self._console.status("", spinner="dots")
            self._status.start()
        self._show("")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()

    def expect(self, steps: int) -> None:
        """Say how many steps there will be, beside those done: of two branches one will not run."""
        self._expected = self._done + steps - 1

    def begin(self, step: str) -> None:
        """A step starts."""
        self._step = step
        self._quiet_until = time.monotonic() + QUIET_SECONDS
        self._show("")

    def detail(self, line: str) -> None:
        """The step's newest line of output; KFP's own lines are left out. Off a terminal, an epoch now and then."""
        if self._status and line and not line.startswith(("[KFP", "---", "{", "}", '"')) and " - INFO - " not in line:
            self._show(line)
        elif not self._status and line.startswith("epoch ") and time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            self._console.print(f"           {escape(self._step)}: {escape(line)}")

    def end(self, step: str, seconds: float | None) -> None:
        """A step is done; ``seconds`` is None if it came from the cache."""
        with self._lock:
            self._done += 1
            count = f"{self._done}/{self._expected}" if self._expected else f"{self._done}"
            took = "cached" if seconds is None else f"{seconds:.1f} s"
            self._console.print(f"[green]✓[/] {count:>6}  {escape(step)}  [dim]{took}[/]")

    def fail(self, step: str, error: str | None) -> None:
        """A candidate failed and the run goes on; ``error`` is None where an earlier step of the candidate did."""
        with self._lock:
            self._done += 1
            count = f"{self._done}/{self._expected}" if self._expected else f"{self._done}"
            told = "[dim]skipped[/]" if error is None else f"[red]failed[/]: {escape(error)}"
            self._console.print(f"[red]✗[/] {count:>6}  {escape(step)}  {told}")

    def _show(self, detail: str) -> None:
        if self._status:
            width = max(self._console.width - len(self._step) - 12, 10)
            self._status.update(f"{escape(self._step)}  [dim]{escape(detail[:width])}[/]")
