"""Which pseudonym is whose: a table beside the key file, for the person who has the key and for resuming.

One line for each scan, patient and source that `--pseudonymise` renamed: `kind,pseudonym,name`. It is as secret as the
key, so it lies beside it, readable for its owner alone, and never in a folder that is handed on.
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from raysegment.archive.names import show_name
from raysegment.archive.pseudonyms import Pseudonyms
from raysegment.errors import UsageError

COLUMNS = ("kind", "pseudonym", "name")
Row = tuple[str, str, str]


def check_key_apart(key_file: str | Path, out: str | None) -> None:
    """Refuse a key, and with it a table, in a folder that is written for others.

    Args:
        key_file: Where the key lies.
        out: The folder; None or a bucket for none of this machine.

    Raises:
        UsageError: Names both.
    """
    if out is None or "://" in out:
        return
    folder = Path(key_file).expanduser().absolute().parent
    if folder.resolve().is_relative_to(Path(out).resolve()):
        raise UsageError(
            f"the key file's folder {show_name(str(folder))} lies in --out {show_name(out)}, and what is handed on "
            "would tell which pseudonym is whose. Keep the key elsewhere, or choose another --out."
        )


class Lookup:
    """The table of one key.

    Args:
        pseudonyms: The key; it has a file.
    """

    def __init__(self, pseudonyms: Pseudonyms) -> None:
        self.path = Path(f"{pseudonyms.path}.lookup.csv")

    def read(self) -> list[Row]:
        """All lines.

        Raises:
            UsageError: The table cannot be read.
        """
        try:
            text = self.path.read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UsageError(
                f"the look-up table {show_name(str(self.path))} cannot be read: {error.strerror}."
            ) from None
        rows = csv.reader(io.StringIO(text, newline=""))
        return [(row[0], row[1], row[2]) for row in rows if len(row) == len(COLUMNS) and tuple(row) != COLUMNS]

    def add(self, rows: Iterable[Row]) -> int:
        """Add the lines that are not there yet, all or none of them; other processes wait meanwhile.

        Returns:
            How many were added.

        Raises:
            UsageError: The table cannot be read or written.
        """
        with self._locked():
            known = self.read()
            new = list(dict.fromkeys(rows).keys() - set(known))
            if new:
                self._replace([*known, *sorted(new)])
            return len(new)

    def name_of(self, kind: str, pseudonym: str) -> str | None:
        """What a pseudonym stands for; None where the table does not say."""
        return next((name for each, digest, name in self.read() if (each, digest) == (kind, pseudonym)), None)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._refused(error) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _replace(self, rows: list[Row]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=f".{self.path.name}-", dir=self.path.parent)
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(text.getvalue().encode("utf-8", "surrogateescape"))
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, self.path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> UsageError:
        return UsageError(
            f"the look-up table {show_name(str(self.path))} cannot be written: {error.strerror}. It lies beside the "
            "key file; name one with --key-file in a folder of your own."
        )
