"""Names of the container images, one for each dependency set."""

from mlites import __version__

TRAIN = f"mlites/train:{__version__}"
VALIDATE = f"mlites/validate:{__version__}"
DEPLOY = f"mlites/deploy:{__version__}"
