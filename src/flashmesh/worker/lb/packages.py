"""A body that fails because a package its resource declares is not installed: which, and how to get it."""

import re
from collections.abc import Sequence

from flashmesh.functions.errors import EnvironmentFailed

_IMPORT_NAMES = {
    "beautifulsoup4": "bs4",
    "opencv-python": "cv2",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "protobuf": "google",
    "pyjwt": "jwt",
    "python-dateutil": "dateutil",
    "python-dotenv": "dotenv",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "sentence-transformers": "sentence_transformers",
}
"""Distributions whose module has another name, as far as they are common; it only makes an error message better."""


def explain_missing(error: BaseException, declared: Sequence[str]) -> EnvironmentFailed | None:
    """The error that names the declared package whose absence caused `error`; None when it has another cause."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    module = error.name.partition(".")[0]
    for requirement in declared:
        if module.lower() == import_name(requirement).lower():
            return EnvironmentFailed(
                f"This route needs {requirement}, which is declared but not installed where the dev server runs. "
                f"Install it with `uv pip install '{requirement}'` and save the file."
            )
    return None


def import_name(requirement: str) -> str:
    """The module that a requirement most likely provides."""
    name = re.split(r"[\s\[<>=!~;@]", requirement.strip(), maxsplit=1)[0].lower()
    return _IMPORT_NAMES.get(name, name.replace("-", "_").replace(".", "_"))
