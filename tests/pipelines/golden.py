"""The wiring of the compiled digits pipeline, kept for review: python -m tests.pipelines.golden writes it anew.

What other files decide is left out: digests of the code, the package's version, and KFP's own.
"""

import re
import tempfile
from pathlib import Path

from mlites import __version__
from mlites.recipe import load_recipe

GOLDEN = Path(__file__).with_name("digits.golden.yaml")
RECIPE = Path(__file__).parents[2] / "pipelines" / "recipes" / "digits.yaml"
ENVIRONMENT = {"MLITES_CODE": "c0de", "MLITES_STORE_ID": "5703e"}


def render(compiled: Path) -> str:
    """The compiled YAML without what changes by itself."""
    lines = [line for line in compiled.read_text().splitlines() if not line.startswith(("#", "sdkVersion:"))]
    text = "\n".join(lines) + "\n"
    return re.sub(rf"(image: mlites/\w+:){re.escape(__version__)}", r"\1VERSION", text)


def main() -> None:
    """Write the golden file."""
    from pipelines.compress import build_pipeline, compile_pipeline

    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "digits.yaml"
        compile_pipeline(build_pipeline(load_recipe(RECIPE), environment=ENVIRONMENT, local=False), path)
        GOLDEN.write_text(render(path))


if __name__ == "__main__":
    main()
