"""Learning-rate schedules as plain functions of the step.

Source: Smith & Topin (2018), "Super-Convergence", with cosine instead of linear ramps, as is usual since.
"""

import math

WARM_UP = 0.3  # fraction of the steps
START_DIVISOR = 25.0
END_DIVISOR = 1e4  # of the start


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step: from peak/25 up to the peak over 30% of the steps, then down to peak/250,000.

    >>> round(one_cycle(0, 101, 1.0), 3), round(one_cycle(29, 101, 1.0), 3), round(one_cycle(100, 101, 1.0), 3)
    (0.04, 1.0, 0.0)
    """
    start = peak / START_DIVISOR
    top, last = WARM_UP * steps - 1, steps - 1
    if step <= top:
        return _cosine(start, peak, step / top if top > 0 else 1.0)
    return _cosine(peak, start / END_DIVISOR, (step - top) / (last - top))


def step_decay(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step: the peak, a tenth of it after half of the steps, a hundredth after three quarters.

    >>> [step_decay(step, 8, 1.0) for step in (0, 3, 4, 5, 6, 7)]
    [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    """
    if 4 * step >= 3 * steps:
        return peak / 100
    return peak / 10 if 2 * step >= steps else peak


def constant(_step: int, _steps: int, peak: float) -> float:
    """The same learning rate throughout, as in fine-tuning at the last rate of an earlier training.

    >>> constant(7, 8, 0.01)
    0.01
    """
    return peak


def _cosine(begin: float, end: float, progress: float) -> float:
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * progress))


SCHEDULES = {"one-cycle": one_cycle, "step": step_decay, "constant": constant}
