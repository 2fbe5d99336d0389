"""The columns of the three tables that inference writes; every part of a table has exactly these."""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 5
"""Of the tables' columns, in run.json, where version 1 was not written yet; `ADDED_COLUMNS` has what each one added."""

STATUS_OK = "ok"
STATUS_FAILED = "failed"
MASK_ENCODING = "zlib"

SCANS_SCHEMA = pa.schema(
    [
        ("scan_id", pa.string()),
        ("patient_id", pa.string()),
        ("source", pa.string()),
        ("fingerprint", pa.string()),
        ("scan_date", pa.date32()),
        ("scan_day", pa.int32()),
        ("status", pa.string()),
        ("error_type", pa.string()),
        ("error_message", pa.string()),
        ("reference_error", pa.string()),
        ("num_slices", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("spacing_mm", pa.list_(pa.float64())),
        ("slice_axis", pa.string()),
        ("intensity_quantiles", pa.list_(pa.float64())),
        ("model_id", pa.string()),
        ("options_id", pa.string()),
        ("attempt", pa.int32()),
        ("seconds_read", pa.float64()),
        ("seconds_prepare", pa.float64()),
        ("seconds_predict", pa.float64()),
        ("seconds_finish", pa.float64()),
    ]
)
"""One row per scan, ok or failed; a scan is done when its row is here. `attempt` counts the starts of the command;
`slice_axis` is how a volume was cut, null for files of slices. `intensity_quantiles` are the quantiles 0.05, 0.5 and
0.95 of what is not background, raw, of the first channel that the model sees, then of the second, and so on; null in
rows of older versions. `scan_date` is the day on which the scan was made, as the manifest says it, null where it does
not; a later manifest may give an older row its date. `scan_day` are the days since the patient's first scan in
the archive, where a header says the day and `--keep-dates` was not given."""

METRICS_SCHEMA = pa.schema(
    [
        ("scan_id", pa.string()),
        ("patient_id", pa.string()),
        ("label", pa.string()),
        ("voxels", pa.int64()),
        ("volume_ml", pa.float64()),
        ("num_components", pa.int64()),
        ("mean_probability", pa.float64()),
        ("mask_is_empty", pa.bool_()),
        ("reference_is_empty", pa.bool_()),
        ("reference_voxels", pa.int64()),
        ("true_positives", pa.int64()),
        ("false_positives", pa.int64()),
        ("false_negatives", pa.int64()),
        ("true_negatives", pa.int64()),
        ("dice", pa.float64()),
        ("iou", pa.float64()),
        ("accuracy", pa.float64()),
        ("precision", pa.float64()),
        ("recall", pa.float64()),
        ("f1", pa.float64()),
        ("dice_at_half", pa.float64()),
        ("lesion_slices", pa.int64()),
        ("lesion_slice_dice_sum", pa.float64()),
        ("clean_slices", pa.int64()),
        ("clean_slices_with_mask", pa.int64()),
        ("hd95_mm", pa.float64()),
        ("mean_surface_distance_mm", pa.float64()),
        ("surface_dice", pa.float64()),
        ("surface_tolerance_mm", pa.float64()),
        ("lesions_reference", pa.int64()),
        ("lesions_found", pa.int64()),
        ("lesions_missed", pa.int64()),
        ("lesions_false", pa.int64()),
        ("voxels_by_reference", pa.list_(pa.int64())),
        ("border_entropy", pa.float64()),
        ("share_near_threshold", pa.float64()),
        ("mirror_dice", pa.float64()),
        ("member_dice", pa.float64()),
        ("volume_in_training_range", pa.bool_()),
        ("predicted_dice", pa.float64()),
        ("needs_review", pa.bool_()),
    ]
)
"""One row per ok scan and label. From `reference_is_empty` to `voxels_by_reference` all are null where the scan has no
usable reference.

`mean_probability` is over the mask's voxels (NaN if it is empty); `volume_ml` is NaN without spacing; `dice_at_half` is
the Dice of `probability >= 0.5` before any cleaning; `lesion_slices` are slices whose reference holds lesion,
`lesion_slice_dice_sum` the sum of Dice over them, `clean_slices` the other slices. `imaging/surface` says what the
distances are: NaN without spacing, and where mask or reference is empty, and along axes at right angles whatever the
affine's shear; `surface_dice` is at `surface_tolerance_mm`.
`lesions_…` count 26-connected components: `found` those of the reference that the mask touches, `false` those of the
mask that touch no reference. `voxels_by_reference`, where labels exclude each other: the mask's voxels by what the
reference has there, background first, then the labels in their order.

From `border_entropy` on no reference is needed, and all are null in rows of older versions. `border_entropy` is the
mean in bits over the voxels on both sides of the mask's border (NaN where it has none); `share_near_threshold` the
share of voxels within 0.1 of the threshold among those at or above threshold - 0.1 (NaN where there are none);
`mirror_dice` and `member_dice` the agreement of mirrored passes and of members (null where there was one of them, NaN
where all are empty). `volume_in_training_range` is null where volume or range is unknown, `predicted_dice` where the
bundle has no regression or a number it needs is missing, `needs_review` where nothing that its rule asks for is known.
"""

MASKS_SCHEMA = pa.schema(
    [
        ("scan_id", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("dtype", pa.string()),
        ("encoding", pa.string()),
        ("mask", pa.large_binary()),
        ("spacing_mm", pa.list_(pa.float64())),
        ("affine", pa.list_(pa.float64())),
        ("labels", pa.map_(pa.string(), pa.int32())),
    ]
)
"""One row per ok scan; `np.frombuffer(zlib.decompress(mask), dtype).reshape(shape)` is the mask."""

ADDED_COLUMNS: dict[int, dict[str, tuple[str, ...]]] = {
    2: {
        "scans": ("slice_axis",),
        "metrics": (
            "patient_id",
            "hd95_mm",
            "mean_surface_distance_mm",
            "surface_dice",
            "surface_tolerance_mm",
            "lesions_reference",
            "lesions_found",
            "lesions_missed",
            "lesions_false",
            "voxels_by_reference",
        ),
    },
    3: {
        "metrics": (
            "border_entropy",
            "share_near_threshold",
            "mirror_dice",
            "member_dice",
            "volume_in_training_range",
            "predicted_dice",
            "needs_review",
        ),
    },
    4: {"scans": ("intensity_quantiles", "scan_date")},
    5: {"scans": ("scan_day",)},
}
"""Columns by the version that added them, and by table."""

SCHEMAS = {"masks": MASKS_SCHEMA, "metrics": METRICS_SCHEMA, "scans": SCANS_SCHEMA}
"""The tables in the order in which a part is published: a scan is done when it is in `scans`."""

MEASURED_TABLES = ("metrics", "scans")
"""Those that `measure` writes, of masks that stand in the tables of another run."""

CHANGES_SCHEMA = pa.schema(
    [
        ("scan_id", pa.string()),
        ("patient_id", pa.string()),
        ("label", pa.string()),
        ("state", pa.string()),
        ("is_change", pa.bool_()),
        ("voxels_before", pa.int64()),
        ("voxels_after", pa.int64()),
        ("volume_ml_before", pa.float64()),
        ("volume_ml_after", pa.float64()),
        ("difference_ml", pa.float64()),
        ("difference_percent", pa.float64()),
        ("dice", pa.float64()),
        ("hd95_mm", pa.float64()),
        ("why_not", pa.string()),
        ("appeared", pa.bool_()),
        ("vanished", pa.bool_()),
        ("newly_failed", pa.bool_()),
        ("model_id_before", pa.string()),
        ("model_id_after", pa.string()),
    ]
)
"""The table `changes` that `compare` writes: one row per scan and label; one without label where no side has a mask.

`state` is `compared`, `only_before`, `only_after`, `newly_failed`, `recovered` or `failed` (in both).
`difference_percent` is of the volume before, null where that is 0. `dice` and `hd95_mm` are between the two masks where
both lie: NaN where the label is empty in both, `hd95_mm` also where it is empty in one or no spacing is known; null
where the masks cannot be compared, and `why_not` says why. `pipeline/changes` has the rule of `is_change`.
"""

DRIFT_SCHEMA = pa.schema(
    [
        ("feature", pa.string()),
        ("kind", pa.string()),
        ("against", pa.string()),
        ("n_before", pa.int64()),
        ("n_new", pa.int64()),
        ("median_before", pa.float64()),
        ("median_new", pa.float64()),
        ("statistic", pa.float64()),
        ("p", pa.float64()),
        ("p_holm", pa.float64()),
        ("is_drift", pa.bool_()),
        ("stability_index", pa.float64()),
        ("why_not", pa.string()),
    ]
)
"""The table of a cohort's `drift/<run>/`: one row per feature and set that new scans are compared with.

`kind` is `intensity`, `spacing`, `shape`, `volume` or `doubt`; `against` is `training` or `past`; `n_before` and
`n_new` are patients that have the feature. From `statistic` to `is_drift` all are null where nothing was tested, and
`why_not` says why. `pipeline/drift` has the test.
"""

TRAJECTORIES_SCHEMA = pa.schema(
    [
        ("patient_id", pa.string()),
        ("label", pa.string()),
        ("scan_id", pa.string()),
        ("scan_date", pa.date32()),
        ("scan_day", pa.int32()),
        ("volume_ml", pa.float64()),
        ("needs_review", pa.bool_()),
    ]
)
"""The table `trajectories`: one row per label of each scan that has a date and a volume, by patient, label and day.
Where of a patient no date is known, days since the first scan take its place."""

GROWTH_SCHEMA = pa.schema(
    [
        ("patient_id", pa.string()),
        ("label", pa.string()),
        ("num_scans", pa.int64()),
        ("num_dates", pa.int64()),
        ("first_date", pa.date32()),
        ("last_date", pa.date32()),
        ("days", pa.int64()),
        ("first_volume_ml", pa.float64()),
        ("last_volume_ml", pa.float64()),
        ("ml_per_year", pa.float64()),
        ("ml_per_year_low", pa.float64()),
        ("ml_per_year_high", pa.float64()),
        ("percent_per_year", pa.float64()),
        ("percent_per_year_low", pa.float64()),
        ("percent_per_year_high", pa.float64()),
        ("doubling_days", pa.float64()),
        ("doubling_days_low", pa.float64()),
        ("doubling_days_high", pa.float64()),
        ("grows", pa.bool_()),
        ("shrinks", pa.bool_()),
        ("scans_without_date", pa.int64()),
        ("scans_without_volume", pa.int64()),
    ]
)
"""The table `growth`: one row per patient and label with volumes of two days or more.

`first_date` and `last_date` are null where only days since the first scan are known, and `num_dates` counts these.
`first_volume_ml` and `last_volume_ml` are means over the scans of that day. `ml_per_year` is the slope of a straight
line through all scans, `percent_per_year` and `doubling_days` that of one through the logarithms of their volumes, null
where a volume is 0; a negative `doubling_days` is the time in which half is left. `_low` and `_high` are 95 % intervals
by Student's t with `num_scans` - 2 degrees of freedom, null for two scans; those of `doubling_days` also where growth
and shrinking are both within the interval. `grows` and `shrinks` say whether the interval of `ml_per_year` lies above
or below 0, null where there is none. The last two columns count scans of this patient that were left out.
"""
