"""`raysegment train`: from an archive to a bundle, on Ray Train workers that may die."""

from __future__ import annotations

from pathlib import Path

from raysegment.archive.index import key_of
from raysegment.archive.pseudonymise import hide_source
from raysegment.cluster.session import check_temp_dir, interruptible, ray_session, run_interruptibly
from raysegment.cluster.training.run import train_in_session
from raysegment.commands.train_folds import FoldsResult, train_folds
from raysegment.commands.trained_run import (
    TrainResult,
    build_result,
    check_precision,
    is_finished,
    keep_rules,
    without_credentials,
)
from raysegment.commands.training_data import find_training_data
from raysegment.model.init_from import adopt_origin
from raysegment.options import TrainOptions
from raysegment.runs.console import Console
from raysegment.runs.identity import identify
from raysegment.runs.lock import RunLock
from raysegment.runs.mlflow_server import check_client
from raysegment.runs.record import keep_record, list_choices, read_record
from raysegment.runs.tracking import track_run
from raysegment.store.place import Place, report_full_disk


@interruptible()
def train(options: TrainOptions) -> TrainResult | FoldsResult:
    """Train a network and write its bundle; with `folds`, one for each, measured on the patients that it held out.

    An unfinished run in the same folder goes on; a finished one does where more epochs, minutes or patience are given.

    Raises:
        UsageError: Wrong options, nothing to train on, or a folder that holds a different run.
        RunError: Too many bad scans, too many lost workers, a full disk, or a cluster that is too small.
    """
    options = hide_source(options)
    folder = Path(options.out).absolute()
    place = Place(str(folder))
    options, origin = adopt_origin(keep_rules(options, place))
    check_temp_dir(options.address, options.temp_dir)
    check_client(options.mlflow_uri)
    data = find_training_data(options, read_record(place), origin)
    if options.folds is not None:
        return train_folds(options, data, place)
    record = identify("train", options, key="options", **data.facts).open(place)
    if is_finished(folder, record, options):
        return build_result(folder, record, already_done=True)
    record["key"] = key_of(data.found)
    check_precision(options, record)
    place.make_writable()
    with (
        report_full_disk(str(folder)),
        RunLock(place),
        keep_record(place, record),
        Console(place, as_json=options.json) as console,
    ):
        data.tell(options, console)
        uri, choices = options.mlflow_uri, list_choices(options)
        options = without_credentials(options)
        with (
            track_run(uri, place, record, console, params=choices),
            ray_session(options.address, options.temp_dir),
        ):
            run_interruptibly(lambda: train_in_session(options, data.labels, data.manifest, place, record, console))
    return build_result(folder, record)
