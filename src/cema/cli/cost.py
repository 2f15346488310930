"""`cema cost`: what a fleet sends and receives, in bytes and money."""

from __future__ import annotations

import json as json_
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cema.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from cema.edge.config import UploadConfig
    from cema.formats.bundle import Bundle
    from cema.formats.image import CodecConfig

__all__ = ["cost", "costs"]

DAY = 24 * 3600
MONTH_DAYS = 30
GB = 10**9


def cost(
    rate: Annotated[
        float | None,
        typer.Option(min=0, help="Images per second that a device predicts.", show_default="see --per-day"),
    ] = None,
    per_day: Annotated[
        float | None,
        typer.Option(min=0, help="Images per day that a device predicts.", show_default="see --rate"),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="The share of the images that is selected.")
    ] = 0.1,
    random_share: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="The share of all images that is sent whatever is selected.",
            show_default="0.01, or as --config says",
        ),
    ] = None,
    sample_bytes: Annotated[
        float | None,
        typer.Option(min=0, help="Bytes of one sample.", show_default="measured, see --bundle and --config"),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Measure on the golden images of this bundle.", show_default="see --sample-bytes"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Measure as a device with this configuration (TOML) encodes them.",
            show_default="see --bundle",
        ),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="Devices of the fleet.")] = 1,
    update_bytes: Annotated[
        float | None,
        typer.Option(
            min=0, help="Bytes of one update.", show_default="measured; 0 without --bundle and --config"
        ),
    ] = None,
    updates_per_day: Annotated[
        float, typer.Option(min=0, help="Updates per day that a device fetches.")
    ] = 24.0,
    price: Annotated[
        float | None,
        typer.Option(min=0, help="Price of a GB (10^9 bytes), sent or received.", show_default="no money"),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON in place of a table.", show_default="a table")
    ] = False,
) -> None:
    """Print the bytes and the money that devices cost per day and per month of 30 days.

    Bodies of requests and answers count; their headers, encryption, and requests for updates that find none do not.
    """
    if (rate is None) == (per_day is None):
        raise ConfigError("expected exactly one of --rate and --per-day: how many images a device predicts")
    if sum(given is not None for given in (sample_bytes, bundle, config)) != 1:
        raise ConfigError(
            "expected exactly one of --sample-bytes, --bundle and --config: how large a sample is"
        )
    for number in (rate, per_day, sample_bytes, update_bytes, updates_per_day, price, random_share):
        if number is not None and not math.isfinite(number):
            raise ConfigError(f"expected finite numbers, got {number}; correct the option")
    images = per_day if per_day is not None else DAY * (rate or 0.0)
    measured = None
    settings = _device(bundle, config)
    if sample_bytes is None:
        from cema.formats.bundle import Bundle

        loaded = Bundle.load(settings.bundle)
        codec = settings.upload.image_codec(loaded.manifest.upload_side)
        measured, sample_bytes = len(loaded.golden_images), _sample_bytes(loaded, codec)
        update_bytes = _update_bytes(loaded) if update_bytes is None else update_bytes
    drawn = settings.upload.random_share if random_share is None else random_share
    samples = images * (share + drawn * (1 - share))  # one that is both is one
    found = {
        "images_per_day": images,
        "random_share": drawn,
        "samples_per_day": samples,
        "sample_bytes": sample_bytes,
        "measured_on": measured,
        "update_bytes": update_bytes or 0.0,
        "updates_per_day": updates_per_day,
        "devices": devices,
        "price_per_gb": price,
        **costs(
            samples * sample_bytes,
            updates_per_day * (update_bytes or 0.0),
            devices=devices,
            price_per_gb=price,
        ),
    }
    if json:
        typer.echo(json_.dumps(found))
    else:
        _show(found)


def costs(up: float, down: float, *, devices: int = 1, price_per_gb: float | None = None) -> dict[str, Any]:
    """Return what one device and the fleet cost.

    Parameters
    ----------
    up, down : float
        Bytes that a device sends and receives a day.
    devices : int, default 1
    price_per_gb : float, optional

    Returns
    -------
    dict
        ``device`` and ``fleet``, each with ``day`` and ``month`` (30 days), each with the bytes ``up`` and ``down``
        and their ``price``; None where there is no price.

    Examples
    --------
    >>> costs(2e6, 5e5, devices=100, price_per_gb=4.0)["fleet"]["month"]
    {'up': 6000000000.0, 'down': 1500000000.0, 'price': 30.0}
    """
    return {
        who: {
            span: {
                "up": count * days * up,
                "down": count * days * down,
                "price": None if price_per_gb is None else count * days * (up + down) / GB * price_per_gb,
            }
            for span, days in (("day", 1), ("month", MONTH_DAYS))
        }
        for who, count in (("device", 1), ("fleet", devices))
    }


class _Device(NamedTuple):
    """A bundle's folder, and how a device that has it encodes and sends."""

    bundle: Path
    upload: UploadConfig


def _device(bundle: Path | None, config: Path | None) -> _Device:
    from cema.edge.config import EdgeConfig, UploadConfig

    if config is not None:
        settings = EdgeConfig.load(config)
        return _Device(Path(settings.bundle), settings.upload)
    return _Device(bundle or Path(), UploadConfig())


def _sample_bytes(bundle: Bundle, codec: CodecConfig) -> float:
    """Return the mean bytes of a sample in a request, with the golden images as samples."""
    from cema.formats.image import encode_image
    from cema.formats.sample import Sample, encode_samples, sample_id

    samples = []
    for image in bundle.golden_images:
        encoded = encode_image(image, codec)
        samples.append(
            Sample(id=sample_id(encoded), image=encoded, entropy=1.5, label=0, version=1, captured_at=1.8e9)
        )
    return len(encode_samples(samples)) / len(samples)


def _update_bytes(bundle: Bundle) -> int:
    """Return the bytes of an update: what the cloud would publish with the bundle's own parameters."""
    import numpy as np
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from cema.formats.payload import encode_payload
    from cema.formats.update import UPDATE_FORMAT, UpdateManifest, sign_update
    from cema.ondevice.drift import Domain, statistics_size

    manifest, statistics = bundle.manifest, bundle.statistics()
    inputs = manifest.preprocessing
    size = statistics_size(inputs.channels, inputs.height, inputs.width)
    payload = encode_payload(
        bundle.affine_state(),
        bundle.golden_logits,
        domain=Domain(np.zeros(size, np.float32), np.zeros((size, size), np.float32)),
        tolerance=manifest.tolerance,
        unfolded=statistics is not None,
        statistics=statistics,
    )
    envelope = sign_update(
        UpdateManifest(
            cohort="a-cohort",
            version=1000,
            base=manifest.base,
            created=1_800_000_000,
            expires=1_800_000_000,
            payload=manifest.base,  # any digest: they are all as long
            payload_bytes=len(payload),
            format=UPDATE_FORMAT,
        ),
        Ed25519PrivateKey.generate(),
    )
    return len(payload) + len(envelope)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console

    measured = found["measured_on"]
    source = "as given" if measured is None else f"measured on {measured} golden images"
    console = Console()
    for text in (
        f"{found['samples_per_day']:,.0f} of {found['images_per_day']:,.0f} images a day, "
        f"{found['sample_bytes']:,.0f} bytes each ({source})",
        f"{found['updates_per_day']:g} updates a day, {found['update_bytes']:,.0f} bytes each",
    ):
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    console.print(_table(found))


def _table(found: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("")
    for column in ("sent", "received", *(["price"] if found["price_per_gb"] is not None else [])):
        table.add_column(column, justify="right")
    for who, name in (("device", "a device"), ("fleet", f"{found['devices']:,} devices")):
        for span in ("day", "month"):
            row = found[who][span]
            price = [] if row["price"] is None else [_money(row["price"])]
            table.add_row(f"{name}, a {span}", _size(row["up"]), _size(row["down"]), *price)
    return table


def _size(size: float) -> str:
    for unit, name in ((10**12, "TB"), (GB, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size:.0f} bytes"


def _money(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.4f}"
