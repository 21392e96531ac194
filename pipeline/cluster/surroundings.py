"""What lies around a run and trips Ray: said in one line, in the place of what Ray or its workers would say."""

from __future__ import annotations

import os
import sys

from patchsieve.pipeline.errors import UserError

# What workers import first, beside the standard library and what this process has loaded already.
_LIBRARIES = {
    *("torch", "torchvision", "timm", "safetensors", "numpy", "pandas", "pyarrow", "fsspec", "PIL", "yaml"),
    *("huggingface_hub", "ray", "webdataset", "tensorboardX", "s3fs", "gcsfs", "adlfs", "aiohttp"),
}


def check_shadows() -> None:
    """Raise UserError where a module in a folder that Ray puts first on its workers' paths hides one that they need.

    Those folders are the working directory, and the one of the script.
    """
    script = os.path.dirname(os.path.realpath(sys.argv[0]))
    for folder in dict.fromkeys([os.getcwd(), *([script] if script in sys.path else [])]):
        hidden = [name for name in _modules_in(folder) if _is_needed(name, folder)]
        if hidden:
            raise UserError(
                f"{os.path.join(folder, hidden[0])} would be imported by Ray's workers in the place of the installed "
                f"{hidden[0].removesuffix('.py')}: start this from another folder, or rename it"
            )


def _modules_in(folder: str) -> list[str]:
    """Files and packages of Python directly in a folder."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if (entry.name.endswith(".py") and entry.is_file())
            or os.path.isfile(os.path.join(entry.path, "__init__.py"))
        )


def _is_needed(file: str, folder: str) -> bool:
    name = file.removesuffix(".py")
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if loaded is not None and os.path.realpath(loaded).startswith(os.path.realpath(folder) + os.sep):
        return False  # it is the one that is meant
    return loaded is not None or name in _LIBRARIES or name in sys.stdlib_module_names


def explained(error: Exception) -> str:
    """Why Ray did not start, with the way out where it is known."""
    text = " ".join(str(error).split())
    if "AF_UNIX path" in text:
        name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
        return (
            f"{name} is {os.environ.get(name, '')}, and the paths of Ray's sockets below it would be too long: set "
            "RAY_TMPDIR to a short folder such as /tmp"
        )
    if isinstance(error, OSError) and error.filename is not None and "/.ray" in str(error.filename):
        return (
            f"Ray keeps its token in {error.filename}, which cannot be written ({error.strerror}): set HOME, which is "
            f"{os.environ.get('HOME', 'not set')}, to a folder that can"
        )
    if "timed out during startup" in text:
        return (
            "Ray did not start within the 30 s that it gives itself, as on a machine that is very busy: run again when "
            f"it is less so. If that does not help: {text}"
        )
    return f"cannot reach or start Ray: {text}"
