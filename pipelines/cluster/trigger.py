"""When a schedule fires: a cron expression, or every so often; checked here, since KFP would say nothing until then."""

import re

from mlites.errors import InputError

FIELDS: tuple[tuple[str, int, int], ...] = (
    ("second", 0, 59),
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of month", 1, 31),
    ("month", 1, 12),
    ("day of week", 0, 6),
)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
UNITS = {"m": 60, "h": 3600, "d": 86400}
SHORTEST_SECONDS = 60
LONGEST_SECONDS = 366 * 86400


def read_cron(text: str) -> str:
    """A cron expression with the six fields that KFP wants: seconds come first.

    >>> read_cron("30 2 * * mon-fri")
    '0 30 2 * * mon-fri'
    >>> read_cron("0 */15 8-18 * * *")
    '0 */15 8-18 * * *'

    Raises:
        InputError: names the field and what it takes.
    """
    given = text.split()
    if len(given) not in (5, 6):
        raise InputError(
            f"--cron {text!r}: expected five fields (minute hour day month weekday), or six with seconds first, "
            f"got {len(given)}; for example '30 2 * * *', each night at half past two"
        )
    fields = given if len(given) == 6 else ["0", *given]
    for value, (name, low, high) in zip(fields, FIELDS, strict=True):
        for part in value.split(","):
            if not _fits(part, name, low, high):
                raise InputError(f"--cron {text!r}: {part!r} is no {name}; it takes {low} to {high}, *, a-b, and /step")
    return " ".join(fields)


def read_every(text: str) -> int:
    """Seconds between two runs.

    >>> read_every("90m"), read_every("1d")
    (5400, 86400)

    Raises:
        InputError: no number with a unit, or too often.
    """
    match = re.fullmatch(r"([0-9]{1,6})([mhd])", text)
    seconds = int(match[1]) * UNITS[match[2]] if match else 0
    if not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
        raise InputError(f"--every {text!r}: expected a number with m, h or d, such as 30m, 6h or 1d; a year at most")
    return seconds


def in_words(cron: str | None, seconds: int | None) -> str:
    """A trigger as the command line takes it.

    >>> in_words("0 30 2 * * *", None), in_words(None, 5400), in_words(None, 86400)
    ("cron '30 2 * * *'", 'every 90m', 'every 1d')
    """
    if cron:
        return f"cron {cron.removeprefix('0 ')!r}" if len(cron.split()) == 6 else f"cron {cron!r}"
    if not seconds:
        return "never"
    unit = next((letter for letter in "dhm" if seconds % UNITS[letter] == 0), None)
    return f"every {seconds // UNITS[unit]}{unit}" if unit else f"every {seconds} s"


def _fits(part: str, name: str, low: int, high: int) -> bool:
    span, slash, step = part.partition("/")
    if slash and not (step.isdecimal() and 1 <= int(step) <= high):
        return False
    if span == "*" or (span == "?" and name.startswith("day")):
        return True
    first, dash, last = span.partition("-")
    begin = _number(first, name)
    end = _number(last, name) if dash else begin
    return begin is not None and end is not None and low <= begin <= end <= high


def _number(text: str, name: str) -> int | None:
    if name == "month" and text.lower() in MONTHS:
        return MONTHS.index(text.lower()) + 1
    if name == "day of week" and text.lower() in WEEKDAYS:
        return WEEKDAYS.index(text.lower())
    return int(text) if text.isdecimal() else None
