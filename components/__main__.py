"""Start a step in its image: ``python3 -m components --function_to_execute STEP --executor_input JSON``."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Hand over to KFP's runtime."""
    # Told that this is the run time, kfp leaves out its client, which the images lack; told so any longer, it would
    # leave out the decorator of components too.
    os.environ["_KFP_RUNTIME"] = "true"
    import kfp  # noqa: F401

    del os.environ["_KFP_RUNTIME"]
    from kfp.dsl import executor_main

    step = sys.argv[sys.argv.index("--function_to_execute") + 1]
    sys.argv[1:1] = ["--component_module_path", str(Path(__file__).with_name(f"{step}.py"))]
    executor_main.executor_main()


if __name__ == "__main__":
    main()
