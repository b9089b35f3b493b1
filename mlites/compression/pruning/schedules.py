"""How much is pruned when: at once, more and more during training, or in rounds of pruning and training.

Source: Zhu & Gupta (2017), "To prune, or not to prune"; Frankle & Carbin (2019), "The Lottery Ticket Hypothesis".
"""

END = 0.75  # of the training: the last quarter is left to recover in


def gradual(done: float, final: float, initial: float = 0.0, begin: float = 0.0, end: float = END) -> float:
    """Sparsity after the fraction ``done`` of the training: fast at first, when many weights do little, then slower.

    Equation 1 of Zhu & Gupta: ``s_t = s_f + (s_i - s_f) * (1 - (t - t_0) / (n * dt)) ** 3``, with ``begin`` for t_0 and
    ``end`` for t_0 + n * dt.

    >>> [round(gradual(done, 0.8, begin=0.0, end=1.0), 3) for done in (0.0, 0.5, 1.0)]
    [0.0, 0.7, 0.8]
    """
    remaining = 1 - min(max((done - begin) / (end - begin), 0.0), 1.0)
    return final + (initial - final) * remaining**3


def geometric(number: int, rounds: int, final: float) -> float:
    """Sparsity after a round from 1, where each removes the same fraction of the weights that are left.

    >>> [round(geometric(number, 3, 0.488), 3) for number in (1, 2, 3)]
    [0.2, 0.36, 0.488]
    """
    return 1 - (1 - final) ** (number / rounds) if number < rounds else final


def equal_steps(number: int, rounds: int, final: float) -> float:
    """Share of the channels gone after a round from 1, where each removes as many.

    >>> [round(equal_steps(number, 3, 0.6), 3) for number in (1, 2, 3)]
    [0.2, 0.4, 0.6]
    """
    return final * (number / rounds)
