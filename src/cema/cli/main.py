"""The `cema` command: errors of the project as one line, and which extra a missing package belongs to."""

from __future__ import annotations

import sys

__all__ = ["main"]

# What installs the packages that a command may miss: an edge device has no torch, a cloud no plots.
_EXTRAS = {
    "cachetools": "cloud",
    "fastapi": "cloud",
    "httpx2": "edge",
    "imagecorruptions": "bench",
    "matplotlib": "bench",
    "onnx": "cloud",
    "onnxruntime": "edge",
    "onnxscript": "cloud",
    "platformdirs": "bench",
    "pooch": "bench",
    "prometheus_client": "cloud",
    "pydantic": "cloud",
    "scipy": "bench",
    "tomli_w": "bench",
    "torch": "cloud",
    "uvicorn": "cloud",
}


def main() -> None:
    """Run the `cema` command.

    An error of the project's own, a file that cannot be used, or a package that the command needs and that is not
    installed, is printed as one line and ends with status 1.
    """
    from cema._util.names import import_from_here
    from cema.cli.app import app
    from cema.errors import CemaError

    import_from_here()
    try:
        app()
    except CemaError as error:
        _fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(
            f"{error.filename}: {error.strerror}; check this path, its permissions and the space on its disk"
        )
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        _fail(
            f"this command needs the package {package}, which is not installed; "
            f"install it with: pip install 'cema[{_EXTRAS[package]}]' (or 'cema[all]' for everything)"
        )


def _fail(message: str) -> None:
    print(f"cema: {message}", file=sys.stderr)
    sys.exit(1)
