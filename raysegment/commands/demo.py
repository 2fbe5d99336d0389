"""`raysegment demo`: the whole flow on made-up scans."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from raysegment.choices import load_options
from raysegment.cluster.session import check_temp_dir, ray_session
from raysegment.commands.evaluate import evaluate
from raysegment.commands.train import train
from raysegment.errors import EXIT_DONE, EXIT_FAILED, UsageError
from raysegment.imaging.phantom import write_archive
from raysegment.options import DemoOptions, EvaluateOptions, TrainOptions
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
        dice_mean: Mean Dice over the test scans.
    """

    scans: Path
    run: Path
    tables: Path
    dice_mean: float
    exit_code: int = EXIT_DONE


def demo(options: DemoOptions) -> DemoResult:
    """Make scans, train on most of them, segment and measure the rest, draw figures; a second run finds all done."""
    out = Path(options.out).absolute()
    check_temp_dir(options.address, options.temp_dir)
    Place(str(out)).make_writable()
    scans, run, tables = out / "scans", out / "run", out / "test"
    if scans.exists():
        check_patients(scans, options)
    else:
        partial = out / "scans.partial"
        shutil.rmtree(partial, ignore_errors=True)
        write_archive(partial, patients=options.patients, seed=options.seed, image_size=IMAGE_SIZE)
        partial.rename(scans)
    general = {"address": options.address, "temp_dir": options.temp_dir, "json": options.json}
    training = {"source": str(scans), "out": str(run), "seed": options.seed, **general}
    testing = {"model": str(run), "source": str(scans), "out": str(tables), "split": "test", **general}
    with ray_session(options.address, options.temp_dir):
        trained = train(load_options(TrainOptions, training, recipe="demo"))
        evaluated = evaluate(load_options(EvaluateOptions, testing))
    summary = json.loads((tables / "summary.json").read_text(encoding="utf-8"))
    result = DemoResult(
        scans=scans,
        run=run,
        tables=tables,
        dice_mean=summary["dice_mean"],
        exit_code=EXIT_FAILED if evaluated.exit_code == EXIT_FAILED else max(trained.exit_code, evaluated.exit_code),
    )
    print(describe_demo(result) if not options.json else json.dumps({"dice_mean": result.dice_mean}))
    return result


def check_patients(scans: Path, options: DemoOptions) -> None:
    """Refuse to go on with another number of scans than are there.

    Raises:
        UsageError: Names both numbers.
    """
    found = sum(1 for item in scans.iterdir() if item.is_dir())
    if found != options.patients:
        raise UsageError(
            f"--out {options.out} holds scans of {found} made-up patients, --patients is {options.patients}. Choose "
            "another --out."
        )


def describe_demo(result: DemoResult) -> str:
    """Where to look."""
    return (
        f"\nMean Dice on the test scans: {result.dice_mean:.3f}\n"
        f"  scans      {result.scans}\n"
        f"  training   {result.run / 'figures' / 'curves.png'}\n"
        f"  pictures   {result.tables / 'figures' / 'predictions.png'}\n"
        f"  metrics    {result.tables / 'metrics'}  (Parquet: pandas.read_parquet, DuckDB)\n"
        f"  summary    {result.tables / 'summary.json'}\n"
        f"  the model  {result.run / 'model' / 'MODEL_CARD.md'}"
    )
