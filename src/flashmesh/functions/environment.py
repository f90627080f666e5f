"""The surroundings of a program: its `.env` file, and another distribution that claims the same module name."""

from __future__ import annotations

import os

CONFLICT = (
    "The distribution `runpod-flash` is installed beside flashmesh, and both bring a module named runpod_flash. "
    "Repair it with these two commands:\n"
    "  pip uninstall -y runpod-flash\n"
    "  pip install --force-reinstall --no-deps flashmesh"
)


def load_dotenv(start: str | None = None) -> str | None:
    """Read the nearest `.env` from `start` (default: the current directory) upward into the environment.

    Variables that are set already win. Returns the file's path; None when there is none.
    """
    path = find_dotenv(start)
    if path is not None:
        import dotenv  # only a project with a .env file pays for it

        dotenv.load_dotenv(path, override=False)
    return path


def find_dotenv(start: str | None = None) -> str | None:
    """The nearest `.env` file from `start` upward."""
    try:
        folder = os.path.abspath(start or os.getcwd())  # noqa: PTH100, PTH109 - pathlib is slow to import
    except FileNotFoundError:  # the current directory was deleted
        return None
    while True:
        path = f"{folder.rstrip('/')}/.env"
        if os.path.isfile(path):  # noqa: PTH113 - as above
            return path
        parent = os.path.dirname(folder)  # noqa: PTH120 - as above
        if parent == folder:
            return None
        folder = parent


def conflict_message() -> str | None:
    """What to tell somebody who has `runpod-flash` installed too; None when all is well. For commands: it is slow."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution("runpod-flash")
    except PackageNotFoundError:
        return None
    return CONFLICT


def is_mixed(package_folder: str) -> bool:
    """Whether the folder of our `runpod_flash` holds files of the other distribution too. One look at the disk."""
    return os.path.isfile(f"{package_folder}/stubs/registry.py")  # noqa: PTH113 - as above
