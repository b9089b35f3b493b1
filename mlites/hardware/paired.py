"""Two models on the same labelled rows: what one loses against the other, and whether chance explains it.

Sources: McNemar (1947) in its exact form, only rows that one of the two alone has right tell them apart; Agresti & Min
(2005), a simple interval for the difference of paired proportions that also holds for few rows.
"""

import math
from dataclasses import dataclass
from typing import Any

NORMAL_95 = 1.959964  # two-sided
CHANCE = 0.1  # of a two-sided p-value: 5% in the direction of a loss


@dataclass(frozen=True)
class Drop:
    """What a model loses against another.

    Attributes:
        rows: that both answered, at least 1.
        lost: of them, those that the other alone has right.
        won: those that this one alone has right.
    """

    rows: int
    lost: int
    won: int

    @property
    def points(self) -> float:
        """Loss of accuracy in points; negative is a gain."""
        return 100 * (self.lost - self.won) / self.rows

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the loss in points, each of the four counts raised by a half.

        >>> [round(edge, 2) for edge in Drop(rows=360, lost=4, won=1).interval]
        [-0.49, 2.15]
        """
        lost, won, rows = self.lost + 0.5, self.won + 0.5, self.rows + 2
        middle = (lost - won) / rows
        reach = NORMAL_95 * math.sqrt(lost + won - (lost - won) ** 2 / rows) / rows
        return 100 * max(middle - reach, -1.0), 100 * min(middle + reach, 1.0)

    @property
    def p_value(self) -> float:
        """As `mcnemar` has it."""
        return mcnemar(self.won, self.lost)

    @property
    def beyond_chance(self) -> bool:
        """Whether this one is worse, and not just by the luck of these rows.

        >>> Drop(rows=36, lost=4, won=0).beyond_chance, Drop(rows=36, lost=5, won=0).beyond_chance
        (False, True)
        """
        return self.lost > self.won and self.p_value <= CHANCE

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "lost": self.lost,
            "won": self.won,
            "points": self.points,
            "interval": list(self.interval),
            "p_value": self.p_value,
        }


def mcnemar(better: int, worse: int) -> float:
    """Two-sided exact p-value: the chance that fair coins, one for each differing row, fall at least as unevenly.

    Args:
        better: rows that the first classifier alone has right.
        worse: rows that the second alone has right.

    >>> mcnemar(8, 1), mcnemar(0, 0)
    (0.0390625, 1.0)
    """
    count, ways, tail = better + worse, 1, 0
    for heads in range(min(better, worse) + 1):
        tail += ways
        ways = ways * (count - heads) // (heads + 1)
    return min(1.0, float(2 * tail / 2**count))
