"""From a URL to a store."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from cema._util.names import did_you_mean, load_object
from cema.cloud.store.base import Backend, Limits, Store
from cema.cloud.store.sqlite import SqliteStore
from cema.errors import ConfigError

__all__ = ["absolute_url", "backend_of", "check_store", "open_store"]

_BUILT_IN: dict[str, Backend] = {"sqlite": SqliteStore}


def open_store(url: str, *, max_bytes: int) -> Store:
    """Open the store that a URL names, and make it when there is none.

    Parameters
    ----------
    url : str
        ``sqlite:PATH``, with a relative or an absolute path (``sqlite:///var/cema.db`` is absolute too); or
        ``package.module:Class:ADDRESS`` for a back end of your own: the class has the class methods of
        `cema.cloud.store.base.Backend`, and gets the address as it is written. ``:ADDRESS`` may be left out.
    max_bytes : int
        Cap of the store, in bytes.

    Returns
    -------
    Store
        To be closed by the caller.

    Raises
    ------
    ConfigError
        The URL names no back end, or has an address that the back end does not understand.
    StoreError
        There is something else at the address, or `max_bytes` is too small.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     store = open_store(f"sqlite:{folder}/cema.db", max_bytes=2**24)
    ...     store.open_cohort("north", base="0" * 64)
    ...     store.backlog("north").samples
    ...     store.close()
    0
    """
    _, backend, address = _split(url)
    return backend.open(address, max_bytes=max_bytes)


def backend_of(url: str) -> tuple[Backend, str]:
    """Return the back end that a URL names, and the address in it; nothing is opened.

    Raises
    ------
    ConfigError
        As for `open_store`.
    """
    _, backend, address = _split(url)
    return backend, address


def absolute_url(url: str, folder: Path) -> str:
    """Return a store's URL with its relative paths, if it has any, taken from a folder.

    Raises
    ------
    ConfigError
        As for `open_store`.

    Examples
    --------
    >>> absolute_url("sqlite:cema.db", Path("/var/lib/cema"))
    'sqlite:/var/lib/cema/cema.db'
    """
    name, backend, address = _split(url)
    return f"{name}:{backend.absolute(address, folder)}"


def check_store(url: str, limits: Limits) -> None:
    """Check a store's URL, and let its back end check the cloud's limits; nothing is opened.

    Raises
    ------
    ConfigError
        As for `open_store`; or an empty store could not take every request that the limits let through.
    """
    _, backend, address = _split(url)
    backend.absolute(address, Path())
    try:
        backend.check_limits(limits)
    except ConfigError as error:
        raise ConfigError(f"{error} (at key `limits`)") from error


def _split(url: str) -> tuple[str, Backend, str]:
    """Return a URL's back end, by name and loaded, and its address."""
    scheme, colon, rest = url.partition(":")
    if colon and scheme in _BUILT_IN:
        return scheme, _BUILT_IN[scheme], rest
    name, _, address = rest.partition(":")
    # The address is not shown: it may hold a password.
    expected = (
        f"store: expected {', '.join(f'{known}:PATH' for known in _BUILT_IN)} or package.module:Class:ADDRESS"
    )
    if not (scheme and name.isidentifier()):
        raise ConfigError(
            f"{expected}, got a URL that begins with {scheme!r}{did_you_mean(scheme, _BUILT_IN)}"
        )
    try:
        backend = load_object(f"{scheme}:{name}")
    except ConfigError as error:
        raise ConfigError(f"{expected}; {error}") from error
    missing = [method for method in ("open", "absolute", "check_limits") if not hasattr(backend, method)]
    if missing:
        raise ConfigError(
            f"store: {scheme}:{name} is no back end, it lacks {', '.join(missing)}; see cema.cloud.store.base.Backend"
        )
    return f"{scheme}:{name}", cast("Backend", backend), address
