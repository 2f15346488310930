"""What the demonstration's fleet begins with; see `cema.provision.fleet`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from cema.data.digits import load_digits
from cema.demo.settings import DemoSettings
from cema.export.bundle import ExportReport
from cema.formats.bundle import Bundle
from cema.models.spec import Model
from cema.provision.digits_settings import adapt_settings, edge_settings
from cema.provision.fleet import provision_fleet

__all__ = ["COHORT", "Provisioned", "provision"]

COHORT = "demo"
_CLEAN = 512

CLOUD_TOML = """\
data = "cloud"
signing_key = "keys/signing.key"
port = 0

[[cohort]]
name = "{cohort}"
bundle = "bundle"
model = {model}
foundation = {foundation}
"""

# The stream stands still while samples wait, those in a spool too: with the default it would wait for time to pass.
# What is counted is the method's: nothing is sent at random.
EDGE_TOML = """\
bundle = "bundle"
state = "edge-{index}"

[cloud]
url = "{url}"
cohort = "{cohort}"
token_file = "edge-{index}.token"

[upload]
linger_seconds = 0.25
random_share = 0
"""


@dataclass(frozen=True)
class Provisioned:
    """What provisioning left in the workspace."""

    folder: Path
    bundle: Bundle
    cloud_config: Path
    admin_token: str
    settings: DemoSettings

    @property
    def cohort(self) -> str:
        """The name of the one cohort."""
        return COHORT

    def edge_config(self, index: int, url: str) -> Path:
        """Write the configuration of one edge, now that the cloud's address is known."""
        path = self.folder / f"edge-{index}.toml"
        extra = "" if self.settings.images else edge_settings()
        path.write_text(EDGE_TOML.format(index=index, url=url, cohort=COHORT) + extra)
        return path


def _clean_images(settings: DemoSettings) -> np.ndarray | None:
    """Return images from where the model was trained, for its mean logits; None for models of one's own."""
    return load_digits().train_images[:_CLEAN] if settings.images is None else None


def provision(
    settings: DemoSettings, edge: Model, foundation: Model, folder: Path, console: Console
) -> Provisioned:
    """Make keys, export the edge model, configure the cloud, and register each device.

    Raises
    ------
    ExportError
        If the edge model cannot be exported.
    """

    def cloud_toml(report: ExportReport) -> str:
        models = {"model": json.dumps(settings.model), "foundation": json.dumps(settings.foundation)}
        extra = "" if settings.images else adapt_settings(statistics=report.statistics_layers > 0)
        return CLOUD_TOML.format(cohort=COHORT, **models) + extra

    with console.status(f"exporting {settings.model}"):
        fleet = provision_fleet(
            folder,
            cohort=COHORT,
            edge=edge,
            foundation=foundation,
            devices=[f"edge-{i}" for i in range(settings.edges)],
            people={"demo": "admin"},
            cloud_toml=cloud_toml,
            clean_images=_clean_images(settings),
        )
    report = fleet.report
    console.print(
        f"exported {settings.model}: {report.model_bytes / 1e6:.2f} MB, norm state {report.norm_bytes / 1e3:.1f} kB, "
        f"max difference to torch {report.max_abs_difference:.1e}",
        highlight=False,
    )
    return Provisioned(folder, report.bundle, fleet.cloud_config, fleet.tokens["demo"], settings)
