"""Where downloaded data and weights are kept."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def home() -> Path:
    """Return the folder of weights and data: ``$GNNRL_HOME`` or the user's cache."""
    if "GNNRL_HOME" in os.environ:
        return Path(os.environ["GNNRL_HOME"])
    return user_cache_path("gnnrl_ray", appauthor=False)
