"""`raysegment demo`: the whole flow on made-up scans, slices or volumes."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from raysegment.choices import load_options
from raysegment.cluster.session import check_temp_dir, ray_session
from raysegment.commands.demo_cohort import CohortDemoResult, demo_cohort
from raysegment.commands.evaluate import evaluate
from raysegment.commands.export import export_masks
from raysegment.commands.train import train
from raysegment.errors import EXIT_DONE, EXIT_FAILED, UsageError
from raysegment.imaging.phantom import write_archive
from raysegment.imaging.volume_phantom import write_decathlon
from raysegment.options import DemoOptions, EvaluateOptions, ExportOptions, TrainOptions
from raysegment.store.place import Place

IMAGE_SIZE = 96
"""Side of the made-up slices; the recipe `demo` trains at the same size."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo came to.

    Attributes:
        scans: Folder of the made-up scans.
        run: Folder of the training run.
        tables: Folder of masks and metrics of the test scans.
        dice_mean: Mean Dice over the test scans; over the labels' means where there are several.
        dice: Mean Dice of each label, where there are several.
        masks: Folder of the masks as NIfTI; None for slices.
    """

    scans: Path
    run: Path
    tables: Path
    dice_mean: float
    dice: dict[str, float] = field(default_factory=dict)
    masks: Path | None = None
    exit_code: int = EXIT_DONE


def demo(options: DemoOptions) -> DemoResult | CohortDemoResult:
    """Make scans, train on most of them, segment and measure the rest, draw figures; a second run finds all done.

    Volumes are NIfTI files with two labels, and their masks are written as such. Of a cohort there are three nights.
    """
    if options.cohort:
        return demo_cohort(options)
    out = Path(options.out).absolute()
    check_temp_dir(options.address, options.temp_dir)
    Place(str(out)).make_writable()
    scans, run, tables = out / "scans", out / "run", out / "test"
    if scans.exists():
        check_patients(scans, options)
    else:
        _write_scans(scans, options)
    general = {"address": options.address, "temp_dir": options.temp_dir, "json": options.json}
    training = {"source": str(scans), "out": str(run), "seed": options.seed, **general}
    testing = {"model": str(run), "source": str(scans), "out": str(tables), "split": "test", **general}
    with ray_session(options.address, options.temp_dir):
        trained = train(load_options(TrainOptions, training, recipe="demo-volumes" if options.volumes else "demo"))
        evaluated = evaluate(load_options(EvaluateOptions, testing))
    codes = [trained.exit_code, evaluated.exit_code]
    if options.volumes:
        codes.append(export_masks(ExportOptions(tables=str(tables), out=str(out / "masks"), to="nifti")).exit_code)
    summary = json.loads((tables / "summary.json").read_text(encoding="utf-8"))
    result = DemoResult(
        scans=scans,
        run=run,
        tables=tables,
        dice_mean=summary["dice_mean"],
        dice={name: each["dice_mean"] for name, each in summary.get("labels", {}).items()},
        masks=out / "masks" if options.volumes else None,
        exit_code=EXIT_FAILED if EXIT_FAILED in codes[1:] else max(codes),
    )
    as_json = {"dice_mean": result.dice_mean} | ({"dice": result.dice} if options.volumes else {})
    print(json.dumps(as_json) if options.json else describe_demo(result))
    return result


def check_patients(scans: Path, options: DemoOptions) -> None:
    """Refuse to go on with other scans than are there: another number of them, or volumes where there are slices.

    Raises:
        UsageError: Names what differs.
    """
    are_volumes = (scans / "imagesTr").is_dir()
    if are_volumes != options.volumes:
        kinds = {True: "volumes", False: "slices"}
        raise UsageError(
            f"--out {options.out} holds made-up {kinds[are_volumes]}, and the demo is to be of "
            f"{kinds[options.volumes]}. Choose another --out."
        )
    found = sum(1 for item in (scans / "imagesTr" if are_volumes else scans).iterdir() if item.is_dir() != are_volumes)
    if found != options.patients:
        raise UsageError(
            f"--out {options.out} holds scans of {found} made-up patients, --patients is {options.patients}. Choose "
            "another --out."
        )


def describe_demo(result: DemoResult) -> str:
    """Where to look."""
    of_labels = ", ".join(f"{name} {dice:.3f}" for name, dice in result.dice.items())
    masks = f"  masks      {result.masks}  (NIfTI, on the grids of the scans)\n" if result.masks else ""
    return (
        f"\nMean Dice on the test scans: {result.dice_mean:.3f}{f' ({of_labels})' if len(result.dice) > 1 else ''}\n"
        f"  scans      {result.scans}\n"
        f"  training   {result.run / 'figures' / 'curves.png'}\n"
        f"  pictures   {result.tables / 'figures' / 'predictions.png'}\n"
        f"{masks}"
        f"  metrics    {result.tables / 'metrics'}  (Parquet: pandas.read_parquet, DuckDB)\n"
        f"  summary    {result.tables / 'summary.json'}\n"
        f"  the model  {result.run / 'model' / 'MODEL_CARD.md'}"
    )


def _write_scans(scans: Path, options: DemoOptions) -> None:
    """All of them or none."""
    partial = scans.with_name(f"{scans.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if options.volumes:
        write_decathlon(partial, scans=options.patients, seed=options.seed)
    else:
        write_archive(partial, patients=options.patients, seed=options.seed, image_size=IMAGE_SIZE)
    partial.rename(scans)
