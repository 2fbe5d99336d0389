"""`raysegment infer`: from an archive to three tables, on workers and nodes that may die."""

from __future__ import annotations

import time
from dataclasses import replace

from raysegment.archive.channels import check_channels, order_channels
from raysegment.archive.index import find_scans
from raysegment.archive.labels import match_labels_if_known
from raysegment.archive.pseudonymise import hide_source
from raysegment.cluster.inference.run import InferResult, run_inference
from raysegment.cluster.session import check_temp_dir, interruptible
from raysegment.model.bundle import load_bundle
from raysegment.options import InferOptions


@interruptible()
def infer(options: InferOptions) -> InferResult:
    """Segment the scans of an archive that the output folder does not have yet.

    Raises:
        UsageError: Before Ray starts: wrong option, path or model, or a folder of another run.
        LockedError: Another live run owns the folder.
        DiskFullError: No space left; what is published stays valid.
        TooManyFailuresError: The first 50 finished scans all failed.
        ClusterError: The cluster cannot meet the request, or was lost.
        InterruptedRunError: Ctrl-C or SIGTERM; the same command resumes.
    """
    started = time.time()
    options = hide_source(options)
    bundle = load_bundle(options.model)
    options = replace(options, members=bundle.count_members(options.members))
    found = find_scans(options.source, options)
    drawn = match_labels_if_known(options.source, options.labels, bundle.labels, found)
    found = order_channels(found, bundle.channel_names)
    manifest = found.slice(0, options.limit) if options.limit else found
    check_temp_dir(options.address, options.temp_dir)
    check_channels(manifest, bundle.num_channels)
    return run_inference(options, bundle, drawn, manifest, found, command="infer", started=started)
