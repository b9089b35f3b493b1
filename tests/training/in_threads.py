"""Workers of one training as threads of this process, which speak through gloo as processes do."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from mlites.training.workers import Workers

Result = TypeVar("Result")


def together(count: int, work: Callable[[Workers], Result], *, patience_s: float = 60) -> list[Result]:
    """What each of so many workers returns, the first one's first; the first error of any is raised."""
    store = dist.HashStore()
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            group = dist.ProcessGroupGloo(store, rank, count, timeout=timedelta(seconds=patience_s))
            results[rank] = work(Workers(rank, count, group))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(count)]
