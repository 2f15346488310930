"""Many devices from a file, each token in a file of its own.

The files come first, and the register takes all devices in one transaction after that. So a crash leaves no device
whose token nobody has: there are only files with tokens that the register does not know yet. The same command takes
those tokens and goes on.
"""

from __future__ import annotations

import csv
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast, get_args

from cema._util.files import sync_folder, write_new
from cema.cli.moments import moment
from cema.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from cema.cloud.store.devices import Device, Role
    from cema.cloud.store.fleet import FleetRegister

__all__ = ["Row", "add_all", "read_rows"]

_REQUIRED, _OPTIONAL = ("name", "cohort"), ("role", "expires")
# Faults of a file that are told at once.
_MOST_FAULTS = 20
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}\n")


class Row(NamedTuple):
    """A device of a file.

    Attributes
    ----------
    line : int
        Where it stands.
    name : str
    cohort : str or None
        None, for an operator or an admin, stands for all.
    role : str
    expires_at : float or None
        Unix seconds.
    """

    line: int
    name: str
    cohort: str | None
    role: str
    expires_at: float | None


def read_rows(path: Path, cohorts: Collection[str]) -> list[Row]:
    """Read and check a CSV file with the columns name, cohort and, where it has them, role and expires.

    Raises
    ------
    ConfigError
        The file cannot be read, or is none; the message names line and column of every fault.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True, restkey="", restval=None)
            _check_header(path, reader.fieldnames or ())
            faults: list[str] = []
            rows = [
                row for cells in reader if (row := _row(reader.line_num, cells, cohorts, faults)) is not None
            ]
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); name a CSV file with --from"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: expected a CSV file in UTF-8: {error}") from error
    faults += _twice(rows)
    if faults:
        more = len(faults) - _MOST_FAULTS
        rest = [f"and {more} more"] if more > 0 else []
        raise ConfigError("\n".join([f"{path}: no device was added:", *faults[:_MOST_FAULTS], *rest]))
    if not rows:
        raise ConfigError(f"{path}: expected at least one device below the line of column names, got none")
    return rows


def _check_header(path: Path, names: Sequence[str]) -> None:
    known = (*_REQUIRED, *_OPTIONAL)
    wrong = [name for name in names if name not in known]
    missing = [name for name in _REQUIRED if name not in names]
    if wrong or missing or len(set(names)) < len(names):
        raise ConfigError(
            f"{path}, line 1: expected the column names name,cohort and, if there are any, role and expires, got "
            f"{','.join(names) or 'nothing'!r}"
        )


def _row(
    line: int, cells: Mapping[str, str | None], cohorts: Collection[str], faults: list[str]
) -> Row | None:
    from cema.cloud.store.devices import NAME, Role

    def fault(column: str, text: str) -> None:
        faults.append(f"line {line}, column {column}: {text}")

    before = len(faults)
    if "" in cells or None in cells.values():
        faults.append(f"line {line}: expected as many cells as line 1 has, got more or fewer")
        return None
    name, cohort, role, expires = ((cells.get(key) or "").strip() for key in (*_REQUIRED, *_OPTIONAL))
    role = role or "device"
    if not NAME.fullmatch(name):
        fault(
            "name",
            f"expected 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit, got {name!r}",
        )
    if role not in get_args(Role):
        fault("role", f"expected one of {', '.join(get_args(Role))}, got {role!r}")
    if cohort and cohort not in cohorts:
        fault("cohort", f"there is no cohort {cohort!r}; choose one of {', '.join(sorted(cohorts))}")
    if not cohort and role == "device":
        fault("cohort", f"a device belongs to one cohort; name one of {', '.join(sorted(cohorts))}")
    expires_at = None
    try:
        expires_at = moment(expires, option="expires") if expires else None
    except ConfigError as error:
        fault("expires", str(error).partition(": ")[2])
    return Row(line, name, cohort or None, role, expires_at) if len(faults) == before else None


def _twice(rows: Sequence[Row]) -> Iterator[str]:
    first: dict[str, int] = {}
    for row in rows:
        if first.setdefault(row.name, row.line) != row.line:
            yield f"line {row.line}, column name: {row.name!r} is on line {first[row.name]} already"


def add_all(
    devices: FleetRegister, rows: Sequence[Row], path: Path, out: Path
) -> tuple[list[Row], list[Row]]:
    """Write each device's token to a file in `out`, and register all of them or none.

    Parameters
    ----------
    devices
        The register.
    rows
        The devices.
    path
        The file that they come from, for messages.
    out
        A folder; it is made where it is missing.

    Returns
    -------
    tuple of list of Row
        Those that were added now, and those that an earlier call had added, with the tokens that lie in the folder.

    Raises
    ------
    ConfigError
        A device is there and its token is not in the folder, or a file is in the way.
    """
    from cema.cloud.store.fleet import DeviceTaken, NewDevice

    known = {device.name: device for device in devices.list()}
    new = [row for row in rows if row.name not in known]
    old = [row for row in rows if row.name in known]
    for row in old:
        _check_known(devices, known[row.name], row, path, out)
    # Looked at before anything is written.
    found = {row.name: _token_in(out / f"{row.name}.token") for row in new}
    for row in new:
        token = found[row.name]
        owner = None if token is None else devices.authenticate(token)
        if owner is not None and owner.name != row.name:
            raise ConfigError(
                f"{path}, line {row.line}: {out / f'{row.name}.token'} has the token of another device; name another "
                "folder with --out"
            )
        if owner is not None:
            raise StoreError(f"{row.name!r} was added while this command ran; run it again")
    tokens = _written(found, out)
    made = [
        NewDevice(row.name, row.cohort, cast("Role", row.role), tokens[row.name], row.expires_at)
        for row in new
    ]
    try:
        devices.add_all(made)
    except DeviceTaken as error:
        raise StoreError(f"{error}. It was added while this command ran; run it again") from error
    return new, old


def _check_known(devices: FleetRegister, device: Device, row: Row, path: Path, out: Path) -> None:
    file = out / f"{row.name}.token"
    token = _token_in(file)
    owner = devices.authenticate(token) if token else None
    if owner is None or owner.name != row.name:
        raise ConfigError(
            f"{path}, line {row.line}, column name: there is a device {row.name!r} already, and {file} has not its "
            "token; no device was added: choose another name, or give it a new token with renew and take it out of "
            "the file"
        )
    if (device.cohort, device.role) != (row.cohort, row.role):
        raise ConfigError(
            f"{path}, line {row.line}: the device {row.name!r} was added as {device.role} of cohort {device.cohort}, "
            f"and the file says {row.role} of cohort {row.cohort}; no device was added: correct the file, or move the "
            "device"
        )


def _token_in(file: Path) -> str | None:
    """Return the token that an earlier call has left in a file; None where there is no such file."""
    try:
        status = file.lstat()
        text = file.read_text() if stat.S_ISREG(status.st_mode) else ""
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError):
        text = ""
    if not _TOKEN.fullmatch(text) or status.st_mode & 0o077 or status.st_uid != os.getuid():
        raise ConfigError(
            f"{file}: there is such a file already, and it is no token that this command has written for you alone; no "
            "device was added: remove it, or name another folder with --out"
        )
    return text.strip()


def _written(found: Mapping[str, str | None], out: Path) -> dict[str, str]:
    """Write a new token for each that has none, durably, and return all by name."""
    from cema.cloud.store.devices import new_token

    tokens = {}
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, token in found.items():
            tokens[name] = token or new_token()
            if token is None:
                write_new(out / f"{name}.token", f"{tokens[name]}\n".encode(), mode=0o600)
        sync_folder(out)
        sync_folder(out.parent)
    except OSError as error:
        raise ConfigError(
            f"{out}: the tokens cannot be written there ({error.strerror}); no device was added: name another folder "
            "with --out"
        ) from error
    return tokens
