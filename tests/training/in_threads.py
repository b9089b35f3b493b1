"""Workers of one training as threads of this process, which speak through gloo as processes do."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from mlites.training.workers import Workers

Result = TypeVar("Result")


def together(count: int, work: Callable[[Workers], Result], *, patience_s: float = 60) -> list[Result]:
    """What each of so many workers returns, the first one's first; the first error of any is raised.

    What training sets for a whole process, and puts back after, is put back here: threads do not end in order.
    """
    store = dist.HashStore()
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            group = dist.ProcessGroupGloo(store, rank, count, timeout=timedelta(seconds=patience_s))
            results[rank] = work(Workers(rank, count, group))
        except BaseException as error:
            errors.append(error)

    settings = torch.utils.deterministic
    before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory  # type: ignore[attr-defined]
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_rng_state(before[0])
    torch.use_deterministic_algorithms(before[1])
    settings.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(count)]
