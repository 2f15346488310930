#!/usr/bin/env python3
"""Fetch the libraries that the operators' page uses, and write their published files to src/cema/page/static/vendor.

Each is pinned to one version, and its package is checked against the SHA-512 that is written here. Nothing is built:
the files are those that the package holds. Two changes are made: the comment that names a source map, which is not
here, is taken out, and uPlot, which is published minified only as a global variable, gets a line that exports it.

To update one: change its version, run this with ``--new``, and put the SHA-512 that it prints into ``PINNED``.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[1] / "src" / "cema" / "page" / "static" / "vendor"
RECORD = "vendored.json"
SOURCE_MAP = re.compile(rb"\n?(//# sourceMappingURL=\S+)\s*$")


class Package(NamedTuple):
    """A package of the npm registry.

    Attributes
    ----------
    version : str
    licence : str
        SPDX name.
    sha512 : str
        Of the package's archive, base64, as the registry writes it.
    files : dict of str to str
        Name here, and path in the archive.
    exported : str
        The global variable to export, where the file is no module.
    """

    version: str
    licence: str
    sha512: str
    files: dict[str, str]
    exported: str = ""


PINNED = {
    "preact": Package(
        "10.29.8",
        "MIT",
        "ej2aVZ+vZ8WO7tvlQWRM9N63A0KzF9q4mWJfDUHgYaIofWY9hu74QdnQrjoPMmZi2/nZ5gN0bJCQF49xQqx09Q==",
        {
            "preact.js": "dist/preact.module.js",
            "preact-hooks.js": "hooks/dist/hooks.module.js",
            "LICENSE.preact.txt": "LICENSE",
        },
    ),
    "htm": Package(
        "3.1.1",
        "Apache-2.0",
        "983Vyg8NwUE7JkZ6NmOqpCZ+sh1bKv2iYTlUkzlWmA5JD2acKoxd4KVxbMmxX/85mtfdnDmTFoNKcg5DGAvxNQ==",
        {"htm.js": "dist/htm.module.js", "LICENSE.htm.txt": "LICENSE"},
    ),
    "uplot": Package(
        "1.6.32",
        "MIT",
        "KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==",
        {
            "uplot.js": "dist/uPlot.iife.min.js",
            "uplot.css": "dist/uPlot.min.css",
            "LICENSE.uplot.txt": "LICENSE",
        },
        exported="uPlot",
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Fetch, check and write everything; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"where to (default: {FOLDER})")
    parser.add_argument("--new", action="store_true", help="print the SHA-512 of each package; write nothing")
    options = parser.parse_args(arguments)
    record = {}
    for name, package in PINNED.items():
        archive = _archive(name, package.version)
        sha512 = base64.b64encode(hashlib.sha512(archive).digest()).decode()
        if options.new:
            print(f"{name} {package.version} {sha512}")
            continue
        if sha512 != package.sha512:
            print(
                f"{name} {package.version}: expected SHA-512 {package.sha512}, got {sha512}", file=sys.stderr
            )
            return 1
        record[name] = _written(name, package, archive, options.out)
    if not options.new:
        (options.out / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return 0


def _archive(name: str, version: str) -> bytes:
    """Return the archive of a package, as the registry has it."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, f"{name}@{version}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  names and versions are above
        (path,) = Path(folder).iterdir()
        return path.read_bytes()


def _written(name: str, package: Package, archive: bytes, out: Path) -> dict[str, object]:
    """Write a package's files, and return what to record of them."""
    digests = {}
    with tempfile.TemporaryFile() as file:
        file.write(archive)
        file.seek(0)
        with tarfile.open(fileobj=file) as members:
            for here, inside in package.files.items():
                member = members.extractfile(f"package/{inside}")
                if member is None:
                    raise FileNotFoundError(f"{name} {package.version} has no file {inside}")
                content = SOURCE_MAP.sub(b"\n", member.read())
                if package.exported and here.endswith(".js"):
                    content += f"\nexport default {package.exported};\n".encode()
                (out / here).write_bytes(content)
                digests[here] = hashlib.sha256(content).hexdigest()
    return {
        "version": package.version,
        "licence": package.licence,
        "sha512": package.sha512,
        "files": digests,
    }


if __name__ == "__main__":
    sys.exit(main())
