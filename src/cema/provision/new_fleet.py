"""A folder with all that a first run needs: `cema init`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from cema._util.machine import address_here, listening_socket
from cema._util.names import is_object_name
from cema.cloud.config import CohortConfig
from cema.errors import ConfigError
from cema.export.bundle import ExportReport
from cema.models.registry import resolve
from cema.provision.digits_settings import adapt_settings, edge_settings
from cema.provision.drawn_digits import write_samples
from cema.provision.fleet import provision_fleet, write_token
from cema.provision.staging import staged_folder

__all__ = ["FOUNDATIONS", "MadeFleet", "NewFleet", "write_new_fleet"]

#: The foundation model that goes with a built-in edge model.
FOUNDATIONS: Mapping[str, str] = {
    "digits-cnn": "digits-cnn-foundation",
    "digits-vit": "digits-vit-foundation",
    "efficientnet-lite0": "efficientnet-lite2",
    "efficientnet-lite1": "efficientnet-lite2",
}
_TEMPLATES = Path(__file__).parent / "templates"
_ADMIN = "admin"
_OF_DIGITS = (
    "\n# What suits the built-in digits models; for other models the defaults are a better beginning."
)
_FIRST_PORT, _PORTS = 8080, 100


@dataclass(frozen=True, kw_only=True)
class NewFleet:
    """What `cema init` was asked for.

    Attributes
    ----------
    folder : Path
        New, or empty.
    model : str
        The edge model: any name that `cema.models.registry.resolve` understands.
    foundation : str, optional
        The stronger model; that of `FOUNDATIONS` when left out.
    model_weights, foundation_weights : Path, optional
        Files with weights (safetensors).
    cohort, device : str
        The names of the cohort and of its first device.
    host : str
        The address that the cloud listens on.
    port : int, optional
        8080 when left out, or the next one that is free on this machine.
    url : str, optional
        The cloud's address as devices see it; that of this machine when left out.
    """

    folder: Path
    model: str = "digits-cnn"
    foundation: str | None = None
    model_weights: Path | None = None
    foundation_weights: Path | None = None
    cohort: str = "yard"
    device: str = "camera-1"
    host: str = "127.0.0.1"
    port: int | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        """Refuse names that cannot be, before anything is made."""
        try:
            CohortConfig(name=self.cohort, bundle="", model="", foundation="")
        except ValueError as error:
            raise ConfigError(f"cohort: {error}") from error
        if self.device == _ADMIN:
            raise ConfigError(
                f"device: {_ADMIN!r} is the name of the person who looks after it; name another"
            )


@dataclass(frozen=True)
class MadeFleet:
    """What was made.

    Attributes
    ----------
    report : ExportReport
        Of the bundle; its folder has moved to where it was asked for.
    images : int
        How many sample images there are.
    port : int
    own_model : bool
        Whether ``model.py`` is there, for a model of one's own.
    """

    report: ExportReport
    images: int
    port: int
    own_model: bool


def write_new_fleet(new: NewFleet, step: Callable[[str], object] = lambda _: None) -> MadeFleet:
    """Make a fleet in a folder: all of it, or nothing.

    Parameters
    ----------
    new : NewFleet
    step : callable
        Told what is being done.

    Raises
    ------
    ConfigError
        The folder is not empty, or a name or a number is wrong.
    ModelError, ExportError
        A model cannot be loaded, or not be exported.
    """
    foundation_name = new.foundation or FOUNDATIONS.get(new.model)
    if foundation_name is None:
        raise ConfigError(
            f"foundation: expected the stronger model that teaches {new.model}, got none; name one with the same "
            "classes (--foundation)"
        )
    with staged_folder(new.folder) as folder:
        step(f"loading {new.model} and {foundation_name}")
        edge = resolve(new.model, weights=new.model_weights)
        foundation = resolve(foundation_name, weights=new.foundation_weights, classes=edge.classes)
        port = _free_port(new.host) if new.port is None else new.port
        digits = new.model.startswith("digits-")

        def cloud_toml(report: ExportReport) -> str:
            text = _filled(
                "cloud.toml",
                host=json.dumps(new.host),
                port=str(port),
                cohort=json.dumps(new.cohort),
                model=json.dumps(_lasting_name(new.model)),
                foundation=json.dumps(_lasting_name(foundation_name)),
                weights=_weights(new),
            )
            return text + (
                _OF_DIGITS + adapt_settings(statistics=report.statistics_layers > 0) if digits else ""
            )

        step(f"exporting {new.model}")
        fleet = provision_fleet(
            folder,
            cohort=new.cohort,
            edge=edge,
            foundation=foundation,
            devices=[new.device],
            people={_ADMIN: "admin"},
            cloud_toml=cloud_toml,
        )
        step("writing the rest")
        write_token(folder / f"{_ADMIN}.token", fleet.tokens[_ADMIN])
        _write_edge(folder, new, port, extra=_OF_DIGITS + edge_settings() if digits else "")
        images = write_samples(folder / "images")
        own_model = not is_object_name(new.model) or new.model.partition(":")[0] in {
            "hf",
            "timm",
            "torchvision",
        }
        if own_model:
            (folder / "model.py").write_text((_TEMPLATES / "model.py").read_text(encoding="utf-8"))
        return MadeFleet(fleet.report, images, port, own_model)


def _write_edge(folder: Path, new: NewFleet, port: int, *, extra: str) -> None:
    """Write the device's settings, and what a person reads first."""
    state = f"state-{new.device}"
    text = _filled(
        "edge.toml",
        state=json.dumps(state),
        url=json.dumps(new.url or f"http://{address_here(new.host)}:{port}"),
        cohort=json.dumps(new.cohort),
        token_file=json.dumps(f"{new.device}.token"),
    )
    (folder / "edge.toml").write_text(text + extra, encoding="utf-8")
    (folder / "README.md").write_text(_filled("README.md", device=new.device, state=state), encoding="utf-8")


def _filled(template: str, **values: str) -> str:
    return Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)


def _weights(new: NewFleet) -> str:
    """Return the lines that name files with weights, if there are any."""
    given = {"model_weights": new.model_weights, "foundation_weights": new.foundation_weights}
    return "".join(f"{key} = {json.dumps(str(path.absolute()))}\n" for key, path in given.items() if path)


def _lasting_name(name: str) -> str:
    """Return a model's name that means the same in every folder from which the cloud may be started.

    A file, or a module that is a file in the current folder, is named by its whole path.
    """
    where, _, attribute = name.rpartition(":")
    if where in {"", "timm", "torchvision"}:
        return name
    if where == "hf":
        return f"hf:{Path(attribute).absolute()}" if Path(attribute).exists() else name
    if where.endswith(".py"):
        return f"{Path(where).absolute()}:{attribute}"
    spec = importlib.util.find_spec(where.partition(".")[0])
    here = Path(f"{where}.py").absolute()
    if spec is not None and spec.origin is not None and Path(spec.origin) == here:
        return f"{here}:{attribute}"
    return name


def _free_port(host: str) -> int:
    """Return 8080, or the next port that nobody listens on."""
    for port in range(_FIRST_PORT, _FIRST_PORT + _PORTS):
        try:
            listening_socket(host, port).close()
        except OSError:
            continue
        return port
    return _FIRST_PORT
