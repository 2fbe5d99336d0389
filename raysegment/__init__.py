"""raysegment trains U-Nets and segments archives of medical scans, on one machine or a Ray cluster.

What a command does is also one function: `raysegment.train(options)`, `raysegment.infer(options)`,
`raysegment.evaluate(options)`, `raysegment.measure(options)`, `raysegment.compare(options)`,
`raysegment.resegment(options)`, `raysegment.check_cohort(options)`, `raysegment.tune(options)`,
`raysegment.index(options)`, `raysegment.export(options)`, `raysegment.report(options)`, `raysegment.demo(options)`.
Each takes the command's options and returns a small result; `raysegment.open_cohort(folder)` reads a cohort's current
tables. Importing this package imports neither Ray nor TensorFlow.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.6.0"

_EXPORTS = {
    "check_cohort": ("raysegment.commands.cohort_check", "check_cohort"),
    "compare": ("raysegment.commands.compare", "compare"),
    "demo": ("raysegment.commands.demo", "demo"),
    "evaluate": ("raysegment.commands.evaluate", "evaluate"),
    "export": ("raysegment.commands.export", "export_masks"),
    "index": ("raysegment.commands.index", "index"),
    "infer": ("raysegment.commands.infer", "infer"),
    "load_bundle": ("raysegment.model.bundle", "load_bundle"),
    "load_options": ("raysegment.choices", "load_options"),
    "measure": ("raysegment.commands.measure", "measure"),
    "open_cohort": ("raysegment.runs.cohort", "open_cohort"),
    "report": ("raysegment.commands.report", "report"),
    "resegment": ("raysegment.commands.resegment", "resegment"),
    "train": ("raysegment.commands.train", "train"),
    "CohortCheckOptions": ("raysegment.options", "CohortCheckOptions"),
    "CompareOptions": ("raysegment.options", "CompareOptions"),
    "tune": ("raysegment.commands.tune", "tune"),
    "DemoOptions": ("raysegment.options", "DemoOptions"),
    "EvaluateOptions": ("raysegment.options", "EvaluateOptions"),
    "ExportOptions": ("raysegment.options", "ExportOptions"),
    "IndexOptions": ("raysegment.options", "IndexOptions"),
    "InferOptions": ("raysegment.options", "InferOptions"),
    "MeasureOptions": ("raysegment.options", "MeasureOptions"),
    "RaysegmentError": ("raysegment.errors", "RaysegmentError"),
    "ReportOptions": ("raysegment.options", "ReportOptions"),
    "ResegmentOptions": ("raysegment.options", "ResegmentOptions"),
    "Scan": ("raysegment.scan", "Scan"),
    "ScanEntry": ("raysegment.scan", "ScanEntry"),
    "TrainOptions": ("raysegment.options", "TrainOptions"),
    "TuneOptions": ("raysegment.options", "TuneOptions"),
}

__all__ = sorted([*_EXPORTS, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'raysegment' has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
