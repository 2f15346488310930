"""What every fleet begins with, that of a demonstration and that of a person: keys, bundle, configuration, tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cema._util.files import write_synced
from cema.cloud.config import CloudConfig
from cema.cloud.store.devices import Role
from cema.export.bundle import ExportReport, export_bundle
from cema.formats.keys import generate_key
from cema.models.spec import Model

__all__ = ["Fleet", "provision_fleet", "write_token"]


@dataclass(frozen=True)
class Fleet:
    """What provisioning left in a folder.

    Attributes
    ----------
    report : ExportReport
        Of the bundle.
    cloud_config : Path
        The cloud's configuration.
    tokens : mapping of str to str
        The tokens of people, by their names: they are in no file yet.
    """

    report: ExportReport
    cloud_config: Path
    tokens: Mapping[str, str]


def provision_fleet(
    folder: Path,
    *,
    cohort: str,
    edge: Model,
    foundation: Model,
    devices: Sequence[str],
    people: Mapping[str, Role],
    cloud_toml: Callable[[ExportReport], str],
    clean_images: np.ndarray | None = None,
) -> Fleet:
    """Make the signing key, export the edge model, write ``cloud.toml``, and register devices and people.

    Each device's token goes to ``NAME.token``, readable by this user alone.

    Parameters
    ----------
    folder : Path
        An empty folder.
    cohort : str
        The name of the one cohort.
    edge, foundation : Model
    devices : sequence of str
        Their names.
    people : mapping of str to str
        Name and role of each person or program that looks after the cohort.
    cloud_toml : callable
        Given the report of the export, returns the configuration's text. Its paths are ``keys/signing.key`` and
        ``bundle``.
    clean_images : ndarray of uint8 (N, H, W, C), optional
        Images as the edge model was trained on.

    Raises
    ------
    ExportError
        The edge model cannot be exported.
    ConfigError, StoreError
        The configuration is wrong, or a name is none.
    """
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    generate_key(keys / "signing.key")
    report = export_bundle(
        edge,
        folder / "bundle",
        public_keys=[keys / "signing.pub"],
        upload_side=max(foundation.preprocessing.height, foundation.preprocessing.width),
        clean_images=clean_images,
    )
    config = folder / "cloud.toml"
    config.write_text(cloud_toml(report), encoding="utf-8")
    with closing(CloudConfig.load(config).open_store()) as store:
        register = store.devices([cohort])
        for name in devices:
            write_token(folder / f"{name}.token", register.add(name, cohort=cohort))
        tokens = {name: register.add(name, cohort=cohort, role=role) for name, role in people.items()}
    return Fleet(report, config, tokens)


def write_token(path: Path, token: str) -> None:
    """Write a token to a new file that this user alone can read."""
    write_synced(path, f"{token}\n".encode(), mode=0o600)
