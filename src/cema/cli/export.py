"""`cema export`: from a torch model to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


def export(
    out: Annotated[Path, typer.Argument(help="The folder of the new bundle.")],
    model: Annotated[
        str,
        typer.Option(
            help="A built-in name, timm:NAME, torchvision:NAME, hf:NAME_OR_DIR or package.module:function."
        ),
    ],
    public_key: Annotated[
        list[Path], typer.Option(help="A public key whose updates devices shall trust; may be given again.")
    ],
    weights: Annotated[
        Path | None,
        typer.Option(
            help="A safetensors file with the model's weights.", show_default="what the model comes with"
        ),
    ] = None,
    upload_side: Annotated[
        int | None,
        typer.Option(
            help="Shrink uploads to this shorter side, in pixels: the foundation model's input.",
            show_default="not shrunk",
        ),
    ] = None,
    clean: Annotated[
        Path | None,
        typer.Option(
            help="A folder of images as the model was trained on; the mean of its logits on them is kept.",
            show_default="no mean logits",
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Refuse past this difference between ONNX and torch.")
    ] = 1e-3,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", show_default="off", help="Replace an existing bundle.")
    ] = False,
) -> None:
    """Export a torch classifier as the bundle that devices are provisioned with, checked against torch."""
    from cema.data.image_sequence import FolderImages
    from cema.export.bundle import export_bundle
    from cema.models.left_out import left_out_text
    from cema.models.registry import resolve

    clean_images = None if clean is None else FolderImages(clean)
    report = export_bundle(
        resolve(model, weights=weights),
        out,
        public_keys=public_key,
        upload_side=upload_side,
        clean_images=clean_images,
        tolerance=tolerance,
        overwrite=overwrite,
    )
    manifest = report.bundle.manifest
    typer.echo(
        f"bundle            {out}\n"
        f"base              {manifest.base}\n"
        f"model             {manifest.model}, {manifest.classes} classes, {report.model_bytes / 1e6:.2f} MB\n"
        f"norm state        {report.norm_layers} layers, {report.norm_bytes / 1e3:.1f} kB\n"
        f"max difference    {report.max_abs_difference:.2e} against torch (refused past {tolerance:g})"
    )
    if report.statistics_note is None:
        typer.echo(
            f"statistics        {report.statistics_layers} layers, {report.statistics_bytes / 1e3:.1f} kB"
        )
    else:
        typer.echo(f"statistics        none: {report.statistics_note}")
    if clean_images is not None:
        typer.echo(f"mean logits       of {len(clean_images)} clean images")
    if report.left_out:
        typer.echo(f"not adapted       {left_out_text(report.left_out)}")
