"""Every choice a user has: name, type, default, help, unit, and whether it changes the result.

The command line is generated from these classes; a recipe or a `--job` file holds the same keys.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass
from typing import Literal
from urllib.parse import urlsplit

from raysegment.choices import MORE_THAN_ZERO, Checked, choice
from raysegment.errors import UsageError

Normalization = Literal["scale", "minmax", "zscore", "zscore_foreground", "percentile"]
Crop = Literal["none", "foreground"]
Rules = Literal["0.1", "0.2"]
SliceAxis = Literal["auto", "axial", "coronal", "sagittal"]
Loss = Literal["dice", "bce", "dice_bce", "focal", "tversky"]
Network = Literal["unet", "attention_unet", "residual_unet"]
Encoder = Literal["none", "efficientnetv2-b0", "resnet50v2"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Mirror = Literal["none", "columns", "rows", "rows,columns"]
Threshold = float | str
ENCODERS: tuple[Encoder, ...] = ("efficientnetv2-b0", "resnet50v2")
ENCODER_DEPTH = 5
"""How often an encoder halves the grid."""

"""A number, or `NAME=0.4,…` for labels that overlap."""

PATIENT_PATTERN_HELP = "regular expression whose first group, found in the scan_id, is the patient_id"
DATE_PATTERN_HELP = (
    "regular expression whose named groups, found in the scan_id, are the day of the scan: `(?P<date>…)` for "
    "2024-01-31 or 20240131, or `(?P<year>…)`, `(?P<month>…)` and `(?P<day>…)`; as a manifest's column scan_date says "
    "if not given"
)
KEY_FILE_HELP = (
    "file with the secret key of all pseudonyms, 32 bytes or 64 hex digits; made in the user's configuration folder "
    "if not given"
)
SCAN_PATTERN_HELP = (
    "regular expression whose first group, found in an image's path below SOURCE, is the scan_id: images with one "
    "scan_id are its slices; by folders and numbered names if not given"
)
LABELS_HELP = (
    "a region and its values in references, such as WT=1+2+4, once for each; by labels.yaml or dataset.json in SOURCE "
    "if not given, and without these one region, whatever its value"
)
RESAMPLE_CHANNELS_HELP = (
    "bring volumes of a scan, references included, that lie on another grid to that of its first channel; refused if "
    "not given"
)
SURFACE_TOLERANCE_HELP = "distance between the surfaces of mask and reference that surface Dice takes for agreement"
CHANNEL_HELP = (
    "files of one channel, NAME=GLOB below SOURCE with {scan} for what the files of a scan share, such as "
    "`flair={scan}/*_flair.nii.gz`, once for each; of DICOM, without {scan}, a glob over SeriesDescription, such as "
    "`flair=*FLAIR*`; as the layout tells if not given"
)
MODALITY_HELP = "take only DICOM series of this modality, such as MR; may stand several times; all if not given"
REFERENCE_HELP = (
    "files of references, GLOB below SOURCE with {scan}, such as `{scan}/*_seg.nii.gz`; several are alternatives; of "
    "DICOM, which segmentations (SEG) count; as the layout tells if not given"
)
MIRROR_HELP = (
    "average the probabilities of each slice and of itself mirrored left to right (`columns`), top to bottom (`rows`), "
    "or in each and both of these (`rows,columns`): two passes of the network, or four"
)
SMOOTH_HELP = "smooth probabilities over neighbouring slices, 1/4 1/2 1/4, before the threshold"
SPACING_HELP = "voxel spacing where the format has none: slices,rows,columns, such as 5,1,1"
SPLIT_FILE_HELP = 'JSON {"train": [name, …], "val": […], "test": […]}: patients, or scans that stand for their patient'


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Checked):
    """How pixels become what the network sees; stored in the bundle, the same for training and inference."""

    image_size: int = choice(
        256, "side of the square grid that slices are scaled to", unit="pixels", affects_result=True, minimum=16
    )
    normalization: Normalization = choice(
        "zscore",
        "intensity normalization, per scan and channel; `zscore_foreground` measures only what is not background",
        affects_result=True,
    )
    clip_percentiles: tuple[float, ...] | None = choice(
        None,
        "two percentiles, such as 0.5,99.5, of what the normalization measures; intensities are clipped there first, so"
        " that scalp or fat does not outweigh the rest",
        unit="percent",
        affects_result=True,
        added="0.4.0",
        only_with=("normalization", ("zscore", "zscore_foreground")),
    )
    channels: tuple[int, ...] | None = choice(
        None, "channels to use, counted from 0, such as 0,1,2; all if not given", affects_result=True
    )
    context_slices: int = choice(
        0,
        "neighbouring slices on each side that the network sees as more channels",
        unit="slices",
        affects_result=True,
        minimum=0,
        maximum=4,
    )
    crop: Crop = choice(
        "none",
        "`foreground` scales the box around what is not background, instead of the whole slice, to --image-size",
        affects_result=True,
    )
    slice_axis: SliceAxis = choice(
        "auto",
        "which way volumes are cut into slices; auto: along the thickest spacing, else axial",
        affects_result=True,
        added="0.3.0",
    )
    pixel_mm: float | None = choice(
        None,
        "resample slices to square pixels of this size, instead of scaling them to --image-size; larger ones are then "
        "seen in tiles of --image-size that overlap, smaller ones padded",
        unit="mm",
        affects_result=True,
        minimum=0.01,
        added="0.3.0",
    )
    rules: Rules = choice(
        "0.2",
        "how padding and `--normalization scale` are done: with the background and by the scan's own range, or as in "
        "version 0.1 with 0 and by the type's range; runs and bundles keep theirs",
        affects_result=True,
        before="0.1",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_percentiles(self.clip_percentiles)


@dataclass(frozen=True, kw_only=True)
class Postprocessing(Checked):
    """How probabilities become a mask."""

    threshold: float | str | None = choice(
        None,
        "probability from which a voxel belongs to the mask, or NAME=0.4,NAME=0.5 for labels that overlap; the "
        "bundle's own if not given",
        affects_result=True,
        minimum=0.0,
        maximum=1.0,
    )
    min_component_voxels: int | None = choice(
        None, "remove components smaller than this, in 3-D", unit="voxels", affects_result=True, minimum=0
    )
    largest_component: bool | None = choice(None, "keep only the largest component, in 3-D", affects_result=True)
    fill_holes: bool | None = choice(None, "fill holes in each slice of the mask", affects_result=True)
    mirror: Mirror | None = choice(
        None, f"{MIRROR_HELP}; the bundle's own if not given", affects_result=True, added="0.4.0", before="none"
    )
    smooth_slices: bool | None = choice(
        None, f"{SMOOTH_HELP}; the bundle's own if not given", affects_result=True, added="0.4.0", before=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.threshold, str):
            parse_thresholds(self.threshold)


@dataclass(frozen=True, kw_only=True)
class CommandOptions(Checked):
    """What every command that starts Ray takes."""

    address: str | None = choice(None, "Ray cluster to use, such as auto or ray://head:10001; default: start one here")
    temp_dir: str | None = choice(None, "folder for Ray's session and spilled objects; needs 2 GB free")
    json: bool = choice(False, "print one JSON object a line, for programs")


@dataclass(frozen=True, kw_only=True)
class Identifiers(Checked):
    """What becomes of names, numbers and dates of patients."""

    key_file: str | None = choice(None, KEY_FILE_HELP, added="0.6.0")
    keep_patient_ids: bool = choice(
        False, "take DICOM's PatientID as the patient_id as it is; a keyed hash of it if not given", added="0.6.0"
    )
    keep_dates: bool = choice(
        False,
        "take the dates of DICOM headers as scan_date; if not given, only the days since the patient's first scan in "
        "the archive, as scan_day",
        added="0.6.0",
    )
    pseudonymise: bool = choice(
        False,
        "put keyed hashes also in the place of scan_ids, patient_ids and paths below SOURCE, in tables, messages and "
        "names of exported files; a table beside the key file says which is whose",
        added="0.6.0",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pseudonymise and self.keep_patient_ids:
            raise UsageError(
                "--pseudonymise puts hashes in the place of all patient_ids, and --keep-patient-ids keeps them; leave "
                "one of them out."
            )


@dataclass(frozen=True, kw_only=True)
class Finding(Identifiers):
    """How the scans of a source are found, and how a change of one is noticed."""

    channel: tuple[str, ...] | None = choice(None, CHANNEL_HELP)
    modality: tuple[str, ...] | None = choice(None, MODALITY_HELP, added="0.6.0")
    reference: tuple[str, ...] | None = choice(None, REFERENCE_HELP)
    scan_pattern: str | None = choice(None, SCAN_PATTERN_HELP)
    patient_pattern: str | None = choice(None, PATIENT_PATTERN_HELP)
    date_pattern: str | None = choice(None, DATE_PATTERN_HELP)
    fingerprint: Literal["stat", "content"] = choice(
        "stat", "how a change of a file is noticed: name, size and time, or the bytes themselves"
    )


@dataclass(frozen=True, kw_only=True)
class IndexOptions(Finding):
    """`raysegment index SOURCE --out M.parquet`."""

    source: str = choice(MISSING, "folder or bucket with scans", positional=True)
    out: str | None = choice(None, "manifest to write, Parquet")
    labels: tuple[str, ...] | None = choice(None, LABELS_HELP)
    json: bool = choice(False, "print one JSON object a line, for programs")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Preprocessing, Identifiers, CommandOptions):
    """`raysegment train SOURCE --out RUN`."""

    source: str = choice(MISSING, "folder, manifest or bucket with scans and references", positional=True)
    out: str = choice(MISSING, "folder of the run; an unfinished run there goes on")
    split_file: str | None = choice(None, SPLIT_FILE_HELP)
    train_fraction: float = choice(
        0.9,
        "share of patients to train on, where no other split is given",
        affects_result=True,
        minimum=0,
        maximum=1,
        only_with=("split_file", (None,)),
    )
    val_fraction: float = choice(
        0.05,
        "share of patients to validate on",
        affects_result=True,
        minimum=0,
        maximum=1,
        only_with=("split_file", (None,)),
    )
    channel: tuple[str, ...] | None = choice(None, CHANNEL_HELP, affects_result=True, added="0.3.0")
    modality: tuple[str, ...] | None = choice(None, MODALITY_HELP, affects_result=True, added="0.6.0")
    reference: tuple[str, ...] | None = choice(None, REFERENCE_HELP, affects_result=True, added="0.3.0")
    scan_pattern: str | None = choice(None, SCAN_PATTERN_HELP, affects_result=True, added="0.2.0")
    patient_pattern: str | None = choice(None, PATIENT_PATTERN_HELP, affects_result=True)
    spacing_mm: tuple[float, ...] | None = choice(
        None, f"{SPACING_HELP}; needed for --pixel-mm", unit="mm", affects_result=True, added="0.3.0"
    )
    label: str = choice("lesion", "name of the one region, where no labels are declared", affects_result=True)
    labels: tuple[str, ...] | None = choice(None, LABELS_HELP, affects_result=True, added="0.3.0")
    resample_channels: bool = choice(False, RESAMPLE_CHANNELS_HELP, affects_result=True, added="0.3.0")
    init_from: str | None = choice(
        None,
        "bundle, or run that holds one, whose weights training starts from: what fits in channels and labels is kept; "
        "network and preprocessing are its own where nothing else is typed",
    )
    network: Network = choice("unet", "network", affects_result=True)
    encoder: Encoder = choice(
        "none",
        "network of keras.applications that takes the place of the network's way down; it halves the grid five times, "
        "and --network, --filters, --dropout and --norm are then of the way up",
        affects_result=True,
        added="0.4.0",
    )
    encoder_weights: str | None = choice(
        None,
        "weights of the encoder: the published *_notop.h5, or a .weights.h5 that Keras wrote of it; at random if not "
        "given",
        only_with=("encoder", ENCODERS),
    )
    filters: int = choice(32, "filters of the first level; doubled at each", affects_result=True, minimum=1)
    depth: int = choice(
        4,
        "number of times the grid is halved",
        affects_result=True,
        minimum=1,
        maximum=7,
        only_with=("encoder", ("none",)),
    )
    dropout: float = choice(
        0.0, "share of features dropped at each level's end", affects_result=True, minimum=0, maximum=0.9
    )
    norm: Literal["batch", "group", "none"] = choice("batch", "feature normalization", affects_result=True)
    norm_momentum: float = choice(
        0.9,
        "momentum of batch norm's moving statistics",
        affects_result=True,
        minimum=0,
        maximum=0.9999,
        only_with=("norm", ("batch",)),
    )
    loss: Loss = choice("dice_bce", "loss function", affects_result=True)
    epochs: int = choice(30, "epochs; a finished run goes on to a larger number", minimum=1)
    batch_size: int = choice(
        16, "global batch: slices per optimisation step over all workers", unit="slices", affects_result=True, minimum=1
    )
    optimizer: Literal["adam", "adamw", "sgd"] = choice("adamw", "optimizer", affects_result=True)
    learning_rate: float = choice(1e-3, "largest learning rate", affects_result=True, minimum=0)
    weight_decay: float = choice(
        0.01,
        "AdamW's weight decay: each step takes this share, times the learning rate, off convolutions' kernels, not off "
        "biases and norms; 0.01 hardly does anything at a learning rate of 0.001, 0.5 does",
        affects_result=True,
        minimum=0,
        only_with=("optimizer", ("adamw",)),
    )
    momentum: float = choice(
        0.9,
        "SGD's Nesterov momentum; 0: none",
        affects_result=True,
        minimum=0,
        maximum=0.9999,
        before=0.0,
        only_with=("optimizer", ("sgd",)),
    )
    clip_norm: float | None = choice(
        None,
        "largest norm of all gradients of a step together; longer ones are shortened",
        affects_result=True,
        minimum=1e-6,
        added="0.2.0",
    )
    schedule: Literal["constant", "cosine"] = choice("cosine", "learning-rate schedule", affects_result=True)
    warmup_epochs: float = choice(
        1.0,
        "epochs over which the cosine schedule's learning rate rises",
        unit="epochs",
        affects_result=True,
        minimum=0,
        only_with=("schedule", ("cosine",)),
    )
    ema: float = choice(
        0.0,
        "momentum of an exponential moving average of the weights, which is validated and saved; 0: none",
        affects_result=True,
        minimum=0,
        maximum=0.99999,
    )
    best_by: Literal["val_dice", "val_loss"] = choice("val_dice", "what chooses the best epoch", affects_result=True)
    early_stopping: int = choice(
        0, "stop after this many epochs without a better one; 0: never", unit="epochs", minimum=0
    )
    lesion_fraction: float | None = choice(
        None,
        "share of training slices drawn from those with lesion; as they come if not given",
        affects_result=True,
        minimum=0,
        maximum=1,
    )
    slices_per_epoch: int | None = choice(
        None, "training slices in an epoch; all if not given", unit="slices", affects_result=True, minimum=1
    )
    augment: bool = choice(True, "augment training slices", affects_result=True)
    rotation: float = choice(
        15.0,
        "largest rotation",
        unit="degrees",
        affects_result=True,
        minimum=0,
        maximum=180,
        only_with=("augment", (True,)),
    )
    shift: float = choice(
        0.05,
        "largest shift",
        unit="share of the side",
        affects_result=True,
        minimum=0,
        maximum=0.5,
        only_with=("augment", (True,)),
    )
    zoom: float = choice(
        0.1,
        "largest change of size",
        unit="share",
        affects_result=True,
        minimum=0,
        maximum=0.9,
        only_with=("augment", (True,)),
    )
    shear: float = choice(
        0.1,
        "largest shear",
        unit="share of the side",
        affects_result=True,
        minimum=0,
        maximum=1,
        only_with=("augment", (True,)),
    )
    flip: bool = choice(
        True, "flip half of the slices left to right", affects_result=True, only_with=("augment", (True,))
    )
    elastic: float = choice(
        0.0,
        "largest displacement by a smooth random field",
        unit="share of the side",
        affects_result=True,
        minimum=0,
        maximum=0.08,
        added="0.4.0",
        only_with=("augment", (True,)),
    )
    low_resolution: float = choice(
        0.0,
        "share of slices that are made coarser and brought back to their grid",
        unit="share of slices",
        affects_result=True,
        minimum=0,
        maximum=1,
        added="0.4.0",
        only_with=("augment", (True,)),
    )
    low_resolution_factor: float = choice(
        2.0,
        "by how much --low-resolution makes slices coarser, at most",
        affects_result=True,
        minimum=1,
        maximum=8,
        added="0.4.0",
        only_with=("low_resolution", MORE_THAN_ZERO),
    )
    gamma: float = choice(
        0.0,
        "largest change of the exponent of the foreground's intensities, to either side; their mean and spread stay",
        unit="share",
        affects_result=True,
        minimum=0,
        maximum=4,
        added="0.4.0",
        only_with=("augment", (True,)),
    )
    brightness: float = choice(
        0.1,
        "largest change of brightness",
        unit="normalized intensity",
        affects_result=True,
        minimum=0,
        only_with=("augment", (True,)),
    )
    contrast: float = choice(
        0.1,
        "largest change of contrast",
        unit="share",
        affects_result=True,
        minimum=0,
        maximum=1,
        only_with=("augment", (True,)),
    )
    bias_field: float = choice(
        0.0,
        "largest share by which a smooth random field brightens and darkens what is not background",
        unit="share",
        affects_result=True,
        minimum=0,
        maximum=0.9,
        added="0.4.0",
        only_with=("augment", (True,)),
    )
    noise: float = choice(
        0.05,
        "largest standard deviation of noise",
        unit="normalized intensity",
        affects_result=True,
        minimum=0,
        only_with=("augment", (True,)),
    )
    mirror: Mirror = choice(
        "none",
        f"at inference {MIRROR_HELP}; stored in the bundle, whose threshold is chosen with it",
        affects_result=True,
        added="0.4.0",
    )
    smooth_slices: bool = choice(
        False,
        f"at inference {SMOOTH_HELP}; stored in the bundle, whose threshold is chosen with it",
        affects_result=True,
        added="0.4.0",
    )
    min_component_voxels: int | None = choice(
        None,
        "at inference remove components smaller than this, in 3-D; stored in the bundle; chosen on the validation "
        "scans if not given",
        unit="voxels",
        affects_result=True,
        minimum=0,
        added="0.4.0",
    )
    seed: int = choice(0, "seed of everything random", affects_result=True, minimum=0)
    folds: int | None = choice(
        None,
        "cross-validation: divide the patients of the train and val splits among so many trainings, each of which "
        "holds its share out and is measured on it",
        affects_result=True,
        minimum=2,
        added="0.4.0",
    )
    ensemble: bool = choice(False, "with --folds, make one bundle of the networks of all folds")
    precision: Precision = choice("auto", "precision of the network's arithmetic; auto: what the hardware is fast in")
    workers: int = choice(1, "training workers; of each fold, where there are folds", minimum=1)
    threads: int | None = choice(
        None, "TensorFlow threads of each worker; its share of the CPUs if not given", minimum=1
    )
    max_failures: int = choice(3, "lost workers or nodes after which the run gives up", minimum=0)
    keep_checkpoints: int = choice(2, "checkpoints kept, the newest; the best model is kept besides", minimum=1)
    predictions_every: int = choice(
        0,
        "epochs after which figures/predictions.png is drawn anew while training goes on; 0: at its end only",
        unit="epochs",
        minimum=0,
    )
    steps_per_execution: int = choice(1, "optimisation steps without Python between them; pays on GPUs", minimum=1)
    max_minutes: float | None = choice(
        None,
        "wall-clock budget of all epochs, for each fold anew; training ends before the epoch that would pass it, and "
        "its cosine with it",
        unit="minutes",
        minimum=0,
    )
    mlflow_uri: str | None = choice(
        None,
        "MLflow server that the run is shown on, such as http://host:5000; one that is away delays nothing; needs "
        "raysegment[mlflow]",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is None:
            check_grid(self)
        if self.train_fraction + self.val_fraction > 1:
            raise UsageError(
                f"--train-fraction {self.train_fraction} and --val-fraction {self.val_fraction} add to more than 1; "
                "what is left over is the test split."
            )
        check_shares(self.batch_size, self.workers)
        check_learning(self)
        if self.ensemble and self.folds is None:
            raise UsageError("--ensemble makes one bundle of several folds; give --folds as well, or leave it out.")
        check_spacing(self.spacing_mm)
        check_server_uri(self.mlflow_uri)
        if self.init_from is not None and self.encoder_weights is not None:
            raise UsageError(
                f"--encoder-weights {self.encoder_weights} does nothing beside --init-from {self.init_from}, which has "
                "weights for its encoder; leave one of them out."
            )


@dataclass(frozen=True, kw_only=True)
class InferOptions(Postprocessing, Finding, CommandOptions):
    """`raysegment infer MODEL SOURCE --out OUT`."""

    model: str = choice(MISSING, "bundle, or the folder of a training run that holds one", positional=True)
    source: str = choice(MISSING, "folder, manifest or bucket with scans", positional=True)
    out: str = choice(MISSING, "folder or bucket for the tables; an unfinished run there goes on")
    limit: int | None = choice(None, "segment only the first scans of the manifest", unit="scans", minimum=1)
    retry_failed: bool = choice(False, "try failed scans again")
    labels: tuple[str, ...] | None = choice(
        None,
        "values of the model's labels in references, such as WT=1+2+4, once for each; by labels.yaml or dataset.json "
        "in SOURCE if not given, else as in training",
        affects_result=True,
        added="0.3.0",
    )
    spacing_mm: tuple[float, ...] | None = choice(
        None,
        SPACING_HELP,
        unit="mm",
        affects_result=True,
    )
    resample_channels: bool = choice(False, RESAMPLE_CHANNELS_HELP, affects_result=True, added="0.3.0")
    surface_tolerance_mm: float = choice(
        1.0, SURFACE_TOLERANCE_HELP, unit="mm", affects_result=True, minimum=0, added="0.3.0"
    )
    foreground_box: bool = choice(
        True,
        "let the network see each slice through a window around what is not background, and empty slices not at all; "
        "faster, masks may differ a little",
        affects_result=True,
    )
    precision: Precision = choice(
        "auto", "precision of the network's arithmetic; auto: what the hardware is fast in", affects_result=True
    )
    members: int | None = choice(
        None,
        "networks of an ensemble that are averaged, counted from the first; all if not given",
        affects_result=True,
        minimum=1,
        added="0.4.0",
    )
    batch_size: int = choice(16, "slices in one forward pass", unit="slices", minimum=1)
    workers: int | None = choice(
        None, "inference workers on each node; as the CPUs or GPUs allow if not given", minimum=1
    )
    threads: int | None = choice(
        None, "TensorFlow threads of each worker; its share of the CPUs if not given", minimum=1
    )
    max_attempts: int = choice(3, "times a scan is tried when workers die on it", minimum=1)
    worker_timeout_seconds: float = choice(
        1800.0,
        "time after which a worker that has scans in hand, or loads the network, and answers nothing is ended",
        unit="seconds",
        minimum=1,
    )
    read_timeout_seconds: float = choice(60.0, "time limit for decoding one scan", unit="seconds", minimum=1)
    read_memory_mb: int = choice(4096, "memory limit for decoding one scan", unit="MB", minimum=64)
    part_mb: float = choice(64.0, "size at which a part of the tables closes", unit="MB", minimum=0.001)
    part_seconds: float = choice(10.0, "time after its first scan at which a part closes", unit="seconds", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_spacing(self.spacing_mm)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(InferOptions):
    """`raysegment evaluate MODEL SOURCE --out OUT`."""

    split: Literal["train", "val", "test"] | None = choice(
        None, "scans of this split only; all with a reference if not given"
    )
    split_file: str | None = choice(None, SPLIT_FILE_HELP)
    allow_training_patients: bool = choice(
        False, "with --split val or test, measure patients too that the model was trained on; refused if not given"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_split_choices(self)


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(Checked):
    """`raysegment measure OUT REFERENCES --out EVAL`."""

    tables: str = choice(MISSING, "folder that `infer` or `evaluate` wrote; it is only read", positional=True)
    references: str = choice(
        MISSING, "folder, manifest or bucket with references, of scans named as in the tables", positional=True
    )
    out: str = choice(MISSING, "folder or bucket for metrics and summary; an unfinished run there goes on")
    model: str | None = choice(None, "the tables' model, if it no longer lies where they were made")
    reference: tuple[str, ...] | None = choice(
        None,
        "files of references, GLOB below REFERENCES in which {scan} is a scan_id of the tables, such as "
        "`{scan}_mask.tif`; several are alternatives; found as the tables' scans were if not given",
    )
    labels: tuple[str, ...] | None = choice(
        None,
        "values of the masks' labels in references, such as WT=1+2+4, once for each; by labels.yaml or dataset.json in "
        "REFERENCES if not given, else as in training",
        affects_result=True,
    )
    resample_channels: bool = choice(False, "resample references that lie on another grid", affects_result=True)
    surface_tolerance_mm: float = choice(1.0, SURFACE_TOLERANCE_HELP, unit="mm", affects_result=True, minimum=0)
    split: Literal["train", "val", "test"] | None = choice(
        None, "scans of this split only; all with a reference if not given"
    )
    split_file: str | None = choice(None, SPLIT_FILE_HELP)
    allow_training_patients: bool = choice(
        False, "with --split val or test, measure patients too that the model was trained on; refused if not given"
    )
    retry_failed: bool = choice(False, "try failed scans again")
    scan_pattern: str | None = choice(
        None, "as in `infer`, for references whose names differ from those that the scans had; by default the tables'"
    )
    fingerprint: Literal["stat", "content"] = choice(
        "stat", "how a change of a file is noticed: name, size and time, or the bytes themselves"
    )
    workers: int | None = choice(None, "scans measured at the same time; one for each CPU if not given", minimum=1)
    read_timeout_seconds: float = choice(60.0, "time limit for decoding one reference", unit="seconds", minimum=1)
    read_memory_mb: int = choice(4096, "memory limit for decoding one reference", unit="MB", minimum=64)
    part_seconds: float = choice(10.0, "time after its first scan at which a part closes", unit="seconds", minimum=0)
    key_file: str | None = choice(
        None, "file with the key of the tables' pseudonyms, if it no longer lies where they were made", added="0.6.0"
    )
    json: bool = choice(False, "print one JSON object a line, for programs")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_split_choices(self)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Checked):
    """`raysegment compare BEFORE AFTER --out DIR`."""

    before: str = choice(MISSING, "folder that `infer` or `evaluate` wrote earlier; it is only read", positional=True)
    after: str = choice(MISSING, "folder that one of them wrote later; it is only read", positional=True)
    out: str = choice(MISSING, "folder or bucket for the table of changes, summary and pictures")
    change_percent: float = choice(
        10.0,
        "a label counts as changed where its volumes differ by more than this share of the larger one",
        unit="percent",
        affects_result=True,
        minimum=0,
        maximum=100,
    )
    change_dice: float = choice(
        0.8,
        "and where the Dice of the two masks is below this; where it appeared or vanished it always does",
        affects_result=True,
        minimum=0,
        maximum=1,
    )
    source: str | None = choice(
        None, "folder, manifest or bucket where the scans of the pictures lie; where they were segmented if not given"
    )
    workers: int | None = choice(None, "scans compared at the same time; one for each CPU if not given", minimum=1)
    json: bool = choice(False, "print one JSON object a line, for programs")


@dataclass(frozen=True, kw_only=True)
class CohortOptions(Checked):
    """What a cohort file says, but for its keys `where`, `infer` and `review`; relative paths start from its folder."""

    name: str = choice(MISSING, "name of the cohort, for messages")
    source: str = choice(MISSING, "folder, manifest or bucket with scans")
    model: str = choice(MISSING, "bundle, or the folder of a training run that holds one")
    out: str = choice(MISSING, "the cohort's folder: results, changes, members")
    scans: tuple[str, ...] | None = choice(
        None, "shell patterns over scan_ids, of which one must match; all if not given"
    )
    patients: tuple[str, ...] | None = choice(None, "patient_ids that are meant; all if not given")
    keep: int = choice(2, "results that are kept, the current one among them", minimum=2)
    mass_vanish_percent: float = choice(
        20.0,
        "share of the cohort's scans that may be gone at once before a run asks for --allow-mass-vanish",
        unit="percent",
        minimum=0,
        maximum=100,
    )
    change_percent: float = choice(10.0, "as in `compare`", unit="percent", affects_result=True, minimum=0, maximum=100)
    change_dice: float = choice(0.8, "as in `compare`", affects_result=True, minimum=0, maximum=1)
    drift_rate: float = choice(
        0.05, "share of runs that raise an alarm of drift where there is none, at most", minimum=0.0001, maximum=0.2
    )


@dataclass(frozen=True, kw_only=True)
class ResegmentOptions(CommandOptions):
    """`raysegment resegment COHORT.yaml`."""

    cohort: str = choice(MISSING, "cohort file, YAML", positional=True)
    allow_mass_vanish: bool = choice(
        False, "go on where more scans are gone than the cohort file allows; refused if not given"
    )
    fail_on_drift: bool = choice(
        False, "exit 4 where new scans differ from the training set or from the cohort's past; 3 and 1 come first"
    )
    notify: str | None = choice(
        None,
        "program and arguments, without a shell, that get the summary of the run as JSON on standard input, also when "
        "it failed; on the command line only",
        only_typed=True,
    )


@dataclass(frozen=True, kw_only=True)
class CohortCheckOptions(Checked):
    """`raysegment cohort check COHORT.yaml`."""

    cohort: str = choice(MISSING, "cohort file, YAML", positional=True)
    allow_mass_vanish: bool = choice(
        False, "look where more scans are gone than the cohort file allows; refused if not given, as a run would be"
    )
    json: bool = choice(False, "print one JSON object a line, for programs")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Checked):
    """`raysegment export OUT --to nifti --out DIR`."""

    tables: str = choice(MISSING, "folder that `infer` or `evaluate` wrote", positional=True)
    out: str = choice(MISSING, "folder for the files")
    to: Literal["tiff", "nifti", "bids", "dicom-seg"] = choice(
        "tiff",
        "format of the masks: pages of a TIFF, or a NIfTI volume on the grid of the scan's own file, one for each "
        "label where labels overlap; with bids in a dataset of derivatives with sidecars; or a DICOM segmentation of "
        "DICOM images (needs the extra dicom)",
    )
    source: str | None = choice(
        None,
        "folder, manifest or bucket where the scans lie now; where they were segmented if not given",
        only_with=("to", ("nifti", "bids", "dicom-seg")),
    )
    workers: int | None = choice(
        None,
        "files written at the same time; one for each CPU if not given",
        minimum=1,
        only_with=("to", ("nifti", "bids", "dicom-seg")),
    )
    key_file: str | None = choice(
        None, "file with the key of the tables' pseudonyms, if it no longer lies where they were made", added="0.6.0"
    )
    json: bool = choice(False, "print one JSON object a line, for programs")


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Checked):
    """`raysegment report RUN_OR_OUT`."""

    folder: str = choice(MISSING, "folder of a training, of a search, or of an inference run", positional=True)
    json: bool = choice(False, "print one JSON object a line, for programs")


@dataclass(frozen=True, kw_only=True)
class DemoOptions(CommandOptions):
    """`raysegment demo`."""

    out: str = choice("raysegment-demo", "folder for the made-up scans and all that is made from them")
    volumes: bool = choice(False, "NIfTI volumes with two labels, instead of slices with one")
    cohort: bool = choice(
        False, "three nights of a cohort, ending with pictures of what changed", only_with=("volumes", (False,))
    )
    patients: int = choice(
        24, "made-up patients; with --cohort of its archive, half as many more to train on", minimum=8, maximum=1000
    )
    seed: int = choice(0, "seed of the made-up scans and of the training", minimum=0)


@dataclass(frozen=True, kw_only=True)
class SearchOptions(Checked):
    """What SPACE.yaml says of the search, beside `source`, `recipe`, `space` and options of `train`."""

    trials: int = choice(12, "trials", minimum=1)
    scheduler: Literal["asha", "none"] = choice(
        "asha", "asha stops a trial that falls behind the others at the same epoch; none: each has all its epochs"
    )
    grace_epochs: int = choice(
        3, "epochs that every trial has", unit="epochs", minimum=1, only_with=("scheduler", ("asha",))
    )
    reduction: int = choice(
        3,
        "one of so many trials goes on at --grace-epochs, and at each epoch that is so many times later",
        minimum=2,
        only_with=("scheduler", ("asha",)),
    )


@dataclass(frozen=True, kw_only=True)
class TuneOptions(CommandOptions):
    """`raysegment tune SPACE.yaml --out DIR`."""

    space: str = choice(
        MISSING,
        "YAML file that says which options of `train` vary, and how, which are the same for all trials, and how many "
        "trials there are",
        positional=True,
    )
    out: str = choice(MISSING, "folder of the search; an unfinished one there goes on")
    trials: int | None = choice(
        None, "trials; a finished search goes on to a larger number; as the file says if not given", minimum=1
    )
    retry_failed: bool = choice(False, "go on with failed trials too")


def parse_thresholds(text: str) -> dict[str, float]:
    """Thresholds by the name of their label, from `NAME=0.4,…`.

    Raises:
        UsageError: Names the part that is none.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not name.strip() or not 0 <= value <= 1 or name.strip() in found:
            raise UsageError(
                f"--threshold {part.strip()!r} is no threshold; expected a number from 0 to 1, or NAME=0.4,NAME=0.5 "
                "with each label once."
            )
        found[name.strip()] = value
    return found


def check_split_choices(options: EvaluateOptions | MeasureOptions) -> None:
    """Refuse choices that have a meaning only with a split.

    Raises:
        UsageError: Names the choice.
    """
    if options.split_file is not None and options.split is None:
        raise UsageError("--split-file says who is in which split; give --split train, val or test as well.")
    if options.allow_training_patients and options.split not in ("val", "test"):
        raise UsageError("--allow-training-patients has a meaning only with --split val or test.")


def check_grid(options: TrainOptions) -> None:
    """Refuse a grid that the network cannot work on, and distances that nothing asks for; known once a base model has
    had its say.

    Raises:
        UsageError: Names the two nearest sizes that fit, or the choice that does nothing.
    """
    if options.encoder == "none":
        check_divisible(options.image_size, 2**options.depth)
    else:
        check_divisible(options.image_size, 2**ENCODER_DEPTH, f"of --encoder {options.encoder}")
    if options.spacing_mm is not None and options.pixel_mm is None:
        raise UsageError("--spacing-mm does nothing without --pixel-mm; leave it out.")


def check_divisible(image_size: int, factor: int, reason: str = "2^depth") -> None:
    """Refuse a grid that the network cannot halve as often as it must.

    Raises:
        UsageError: Names the two nearest sizes that fit.
    """
    if image_size % factor:
        below = image_size // factor * factor
        sizes = f"{below} or {below + factor}" if below else str(factor)
        raise UsageError(f"--image-size {image_size} must divide by {factor} ({reason}); the nearest are {sizes}.")


def check_percentiles(percentiles: tuple[float, ...] | None) -> None:
    """Refuse what is no pair of percentiles.

    Raises:
        UsageError: Says what is expected.
    """
    if percentiles is None:
        return
    if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise UsageError(
            f"--clip-percentiles {','.join(map(str, percentiles))} must be two numbers from 0 to 100, the smaller one "
            "first, such as 0.5,99.5."
        )


def check_spacing(spacing_mm: tuple[float, ...] | None) -> None:
    """Refuse what is no distance of voxels.

    Raises:
        UsageError: Says what is expected.
    """
    if spacing_mm is not None and (len(spacing_mm) != 3 or not all(0 < side < math.inf for side in spacing_mm)):
        raise UsageError(f"--spacing-mm {spacing_mm} must be three positive numbers: slices,rows,columns.")


def check_server_uri(uri: str | None) -> None:
    """Refuse what is no address of an MLflow server; the message shows no password.

    Raises:
        UsageError: Says what is expected.
    """
    if uri is None:
        return
    try:
        parts = urlsplit(uri)
        host, rest = parts.hostname if parts.port != 0 else None, f"{parts.path}{parts.query}{parts.fragment}"
    except ValueError:
        host, rest = None, ""
    if host is None or parts.scheme not in ("http", "https") or "@" in rest or parts.query or parts.fragment:
        shown = f"***@{uri.rpartition('@')[2]}" if "@" in uri else uri
        raise UsageError(
            f"--mlflow-uri {shown} is no address of an MLflow server; expected http://HOST:PORT or https://HOST. "
            "Name and password go into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or as NAME:PASSWORD@ "
            "before HOST with %40 for @ and %2F for /."
        )


def check_learning(options: TrainOptions) -> None:
    """Refuse a training that would learn nothing: without lesions, for no time, or for less than the warm-up takes.

    Raises:
        UsageError: Names the choices.
    """
    if options.lesion_fraction == 0:
        raise UsageError(
            "--lesion-fraction 0 trains on slices without lesion only; give a larger share, or leave it out."
        )
    if options.max_minutes == 0:
        raise UsageError("--max-minutes 0 trains nothing; give the minutes that training may take, or leave it out.")
    if options.optimizer == "adamw" and options.weight_decay * options.learning_rate >= 1:
        raise UsageError(
            f"--weight-decay {options.weight_decay:g} with --learning-rate {options.learning_rate:g} takes all of the "
            f"weights away at each step; give less than {1 / options.learning_rate:g}."
        )
    default = TrainOptions.__dataclass_fields__["warmup_epochs"].default
    if options.warmup_epochs > options.epochs and options.warmup_epochs != default:
        raise UsageError(
            f"--warmup-epochs {options.warmup_epochs} are more than --epochs {options.epochs}: the learning rate would "
            "never be reached. Give fewer epochs of warm-up, or more epochs."
        )


def check_shares(batch_size: int, workers: int) -> None:
    """Refuse a global batch that the workers cannot share equally.

    Raises:
        UsageError: Names the nearest sizes that fit.
    """
    if batch_size % workers:
        below = batch_size // workers * workers
        sizes = f"{below} or {below + workers}" if below else str(workers)
        raise UsageError(
            f"--batch-size {batch_size} is the global batch and must divide by --workers {workers}; "
            f"the nearest are {sizes}."
        )
