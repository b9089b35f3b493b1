"""Start a step in its image: ``python3 -m components --function_to_execute STEP --executor_input JSON``.

As KFP's own starter does, but that one needs KFP's client, which the images lack, and puts this folder before Python's
library, where ``select.py`` is another.
"""

import argparse
import json
import os
from importlib import import_module


def main() -> None:
    """Hand the step over to KFP's executor."""
    # Told that this is the run time, kfp leaves out its client; told so any longer, it would leave out the decorator of
    # components too.
    os.environ["_KFP_RUNTIME"] = "true"
    import kfp  # noqa: F401

    del os.environ["_KFP_RUNTIME"]
    from kfp.dsl.executor import Executor

    parser = argparse.ArgumentParser(prog="python3 -m components", description=__doc__)
    parser.add_argument("--function_to_execute", required=True, help="name of the step, as of its file")
    parser.add_argument("--executor_input", required=True, type=json.loads, help="what KFP gives a task")
    given = parser.parse_args()
    step = getattr(import_module(f"components.{given.function_to_execute}"), given.function_to_execute)
    Executor(executor_input=given.executor_input, function_to_execute=step).execute()


if __name__ == "__main__":
    main()
