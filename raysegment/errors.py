"""The tree of errors, and the exit code that each of them means.

RaysegmentError                 exit 1: the run failed
├── UsageError                  exit 2: wrong option, path, model or job file
│   └── MissingExtraError       an optional package is not installed
├── RunError                    exit 1
│   ├── LockedError             another run owns the output folder
│   ├── DiskFullError           no space left; what is published stays valid
│   ├── OutputError             the storage refuses a file of the output folder
│   ├── DamagedTablesError      parts of the tables are lost; the run that wrote them makes them anew
│   ├── ClusterError            the cluster cannot meet the request, or lost its nodes
│   ├── NetworkFailedError      the network failed on a batch; another worker tries its scans
│   ├── DivergedError           training came to a loss that is not a number
│   ├── CheckpointError         checkpoints are missing or cannot be read
│   ├── SharedFolderError       the nodes do not see one and the same output folder
│   └── TooManyFailuresError    most scans fail: wrong archive or wrong model
├── InterruptedRunError         exit 130: Ctrl-C or SIGTERM
└── ScanError                   one scan is bad; the run goes on
    ├── content: UnknownFormatError, TruncatedFileError, EmptyFileError, OversizedScanError,
    │   NonFinitePixelsError, ChannelMismatchError, MissingChannelError, AffineError, SliceMismatchError,
    │   MissingSliceError, DuplicateSliceError, UnknownSpacingError, UnreadableFileError,
    │   DecoderCrashedError, DecoderMemoryError, DecoderTimeoutError, ReaderCrashedError, WorkerCrashedError
    ├── reference: GridMismatchError, ReferenceValuesError, UnreadableReferenceError
    ├── export: SourceChangedError, SourceFormatError, UnknownGridError
    └── access: AccessError     permission, I/O, time-out; every later run tries it again

Exit 3 means that scans failed and the rest is done, 4 that all is done and new scans have drifted (`--fail-on-drift`).
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_SOME_SCANS_FAILED = 3
EXIT_DRIFT = 4
EXIT_INTERRUPTED = 130


class RaysegmentError(Exception):
    """Base of every error that raysegment raises on purpose."""

    exit_code = EXIT_FAILED


class UsageError(RaysegmentError):
    """A wrong option, a missing path, a foreign model, an unknown job-file key."""

    exit_code = EXIT_USAGE


class MissingExtraError(UsageError):
    """An optional package is missing; the message names the pip command."""


class RunError(RaysegmentError):
    """The run as a whole failed."""


class LockedError(RunError):
    """Another live run owns the output folder."""


class DiskFullError(RunError):
    """No space left on the device; everything published stays valid."""


class OutputError(RunError):
    """The storage refuses a file of the output folder; everything published stays valid."""


class DamagedTablesError(RunError):
    """Parts of the tables are missing or damaged; the command that wrote them does their scans again."""


class ClusterError(RunError):
    """The cluster cannot meet the request or was lost."""


class NetworkFailedError(RunError):
    """The network failed on a batch, for lack of memory or a fault of the machine: not a property of the scans."""


class DivergedError(RunError):
    """Training came to a loss that is not a number; trying again would only repeat it."""


class CheckpointError(RunError):
    """A training run's checkpoints are missing, or none of them can be read."""


class SharedFolderError(RunError):
    """The nodes do not see one and the same output folder."""


class TooManyFailuresError(RunError):
    """So many scans fail that the archive or the model must be the wrong one."""


class InterruptedRunError(RaysegmentError):
    """Ctrl-C or SIGTERM; the same command resumes."""

    exit_code = EXIT_INTERRUPTED


class ScanError(RaysegmentError):
    """One scan cannot be used; its neighbours go on."""

    exit_code = EXIT_SOME_SCANS_FAILED


class UnknownFormatError(ScanError):
    """The file's first bytes belong to no format that raysegment reads."""


class TruncatedFileError(ScanError):
    """The file ends before its pixels do."""


class EmptyFileError(ScanError):
    """The file has no bytes, or the scan has no slices."""


class OversizedScanError(ScanError):
    """The header declares more pixels than a scan may have, or the file unpacks to more than its header declares."""


class NonFinitePixelsError(ScanError):
    """The pixels hold NaN or infinity."""


class ChannelMismatchError(ScanError):
    """The number of channels is not what the model or the scan's first slice has."""


class MissingChannelError(ScanError):
    """A scan lacks the file of one of its channels."""


class AffineError(ScanError):
    """The header does not say where voxels lie: singular or broken affine, no spacing."""


class SliceMismatchError(ScanError):
    """The slices of one scan differ in shape or type."""


class MissingSliceError(ScanError):
    """Between the slices of a series there is a gap."""


class DuplicateSliceError(ScanError):
    """Several slices of a series lie at one place: phases, echoes, or copies."""


class UnreadableFileError(ScanError):
    """The decoder refuses the file."""


class DecoderCrashedError(ScanError):
    """The decoding process died on this scan, twice."""


class DecoderMemoryError(ScanError):
    """Decoding this scan needs more memory than it may take."""


class DecoderTimeoutError(ScanError):
    """Decoding this scan took longer than it may."""


class ReaderCrashedError(ScanError):
    """The reading process, the parent of the decoder, died on this scan as often as it may."""


class WorkerCrashedError(ScanError):
    """The inference worker died on this scan as often as it may."""


class GridMismatchError(ScanError):
    """Reference and scan, or two channels of a scan, do not share one grid."""


class UnknownSpacingError(ScanError):
    """The size of the voxels is needed, and the format has none."""


class ReferenceValuesError(ScanError):
    """The values of a reference do not tell what is region."""


class UnreadableReferenceError(ScanError):
    """The scan is fine, its reference cannot be read."""


class SourceChangedError(ScanError):
    """The scan is not there any more as it was when its mask was made."""


class SourceFormatError(ScanError):
    """The scan's files are of a format that the export cannot refer to."""


class UnknownGridError(ScanError):
    """Nobody knows where the voxels of a mask lie, and the format must say so."""


class AccessError(ScanError):
    """Permission, I/O, time-out, or a bucket that refuses one object; tried again by every later run."""


def scan_error(error_type: str, message: str) -> ScanError:
    """Build the scan error of that type name, for errors that travelled between processes as text."""
    found = globals().get(error_type)
    if isinstance(found, type) and issubclass(found, ScanError):
        return found(message)
    return UnreadableFileError(f"{error_type}: {message}")


def parse_scan_error(text: str) -> ScanError:
    """The scan error of a text `ErrorType: message`."""
    error_type, _, message = text.partition(": ")
    return scan_error(error_type, message)
