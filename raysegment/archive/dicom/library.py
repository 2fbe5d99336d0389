"""pydicom and gdcm, brought to silence: their warnings and logs quote what headers hold."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGS = ("pydicom", "highdicom")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """While it lasts, libraries that read and write DICOM neither warn nor log, and take values as they are.

    Not for two threads at once: Python keeps one list of warnings for all. Entered once around threads, it is for all
    of them.
    """
    from pydicom import config

    logs = [logging.getLogger(name) for name in LOGS]
    before = [(log.propagate, log.level) for log in logs]
    settings = config.settings
    modes = settings.reading_validation_mode, settings.writing_validation_mode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings.reading_validation_mode = settings.writing_validation_mode = config.IGNORE
        for log in logs:
            log.propagate, log.level = False, logging.CRITICAL + 1
        try:
            yield
        finally:
            settings.reading_validation_mode, settings.writing_validation_mode = modes
            for log, (propagate, level) in zip(logs, before, strict=True):
                log.propagate, log.level = propagate, level


def silence_gdcm() -> None:
    """Let gdcm, which writes straight to standard error, keep to itself."""
    import gdcm

    for switch in ("DebugOff", "WarningOff", "ErrorOff"):
        getattr(gdcm.Trace, switch)()
