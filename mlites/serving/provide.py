"""Make a store ready for a Triton to start on: ``python3 -m mlites.serving.provide``, before the server starts.

Triton refuses to start on a prefix without objects.
"""

import os
import sys
from contextlib import suppress

from mlites.errors import InputError
from mlites.storage import DEFAULT_STORE, PreconditionFailed, Store

PLACE_KEEPER = "repository/.keep"


def provide_repository(store: Store) -> None:
    """Have an object below ``repository/``; what stands there stays as it is."""
    with suppress(PreconditionFailed):
        store.put(PLACE_KEEPER, b"", if_absent=True)


def main() -> int:
    """Provide the store that MLITES_STORE names; exit 2 with one line where it cannot be reached."""
    try:
        store = Store.open(os.environ.get("MLITES_STORE") or DEFAULT_STORE)
        provide_repository(store)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{store.uri}/repository is there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
