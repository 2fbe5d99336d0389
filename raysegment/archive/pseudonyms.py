"""One secret key, and what stands in the place of an identifier: the same text always has the same, and none tells it.

Plain hashes of names and numbers are found by trying all of them. With a key (RFC 2104, HMAC-SHA256) nobody can try who
does not have the key file.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from raysegment.archive.names import show_name
from raysegment.errors import UsageError

KEY_BYTES = 32
DIGITS = 16
"""Hex digits of a pseudonym: 64 bits, which a billion patients share by chance once in forty archives."""
MAX_DIGITS = 64
FINGERPRINT_KIND = "raysegment key"
EXPECTED_KEY = (
    f"expected {KEY_BYTES} random bytes, or their {2 * KEY_BYTES} hex digits, such as `openssl rand -hex {KEY_BYTES}` "
    "prints"
)


@dataclass(frozen=True)
class Pseudonyms:
    """Keyed hashes of identifiers.

    Attributes:
        key: The secret; no representation shows it.
        path: The file that it was read from; empty where it came from none.
    """

    key: bytes = field(repr=False)
    path: str = ""

    def hash(self, kind: str, text: str, digits: int = DIGITS) -> str:
        """What stands in the place of an identifier.

        Args:
            kind: What it identifies, such as `patient` or `series`: the same text of another kind has another hash.
            text: The identifier as it is.
            digits: Hex digits to keep, at most 64.
        """
        if not 0 < digits <= MAX_DIGITS:
            raise ValueError(f"{digits} digits; a hash has 1 to {MAX_DIGITS}")
        message = f"{kind}\0{text}".encode("utf-8", "surrogatepass")
        return hmac.new(self.key, message, hashlib.sha256).hexdigest()[:digits]

    @property
    def fingerprint(self) -> str:
        """What tells one key from another, and nothing else of it."""
        return self.hash(FINGERPRINT_KIND, "")


def load_pseudonyms(key_file: str | None = None) -> Pseudonyms:
    """The key of a file.

    Args:
        key_file: Its path. If None, the user's own, `default_key_file`, which is made where there is none, readable for
            the user alone.

    Raises:
        UsageError: The file is not there, cannot be read, or holds no key; or the user's own cannot be made.
    """
    path = Path(key_file).expanduser().absolute() if key_file is not None else default_key_file()
    if key_file is None:
        _make_key_file(path)
    try:
        content = _read_regular(path)
    except FileNotFoundError:
        raise UsageError(
            f"--key-file {show_name(str(path))} does not exist. A new key gives everybody another name; if that is "
            f"meant, make one: `(umask 077; openssl rand -hex {KEY_BYTES} > FILE)`, or leave --key-file out."
        ) from None
    except OSError as error:
        raise UsageError(f"key file {show_name(str(path))} cannot be read: {error.strerror}.") from None
    return Pseudonyms(_parse_key(content, path), str(path))


def default_key_file() -> Path:
    """Where the user's own key lies: `raysegment/pseudonyms.key` in the user's configuration folder."""
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    # After the XDG base directory specification a relative path is to be ignored.
    folder = Path(configured) if os.path.isabs(configured) else Path("~/.config").expanduser()
    return folder / "raysegment" / "pseudonyms.key"


def check_same_key(known: str | None, now: str | None, whose: str) -> str | None:
    """Refuse patients and scans that were given other pseudonyms than those that they are to be compared with.

    Args:
        known: Fingerprint of the key that was used before; None where there was none, or nobody says.
        now: Of the key that is used now.
        whose: What was made with the one before, for the message.

    Returns:
        The one that there is.

    Raises:
        UsageError: They are different.
    """
    if known is not None and now is not None and known != now:
        raise UsageError(
            f"{whose} has pseudonyms of the key {known}, and now the key is {now}: nobody would be recognised. Give "
            "the --key-file that it was made with."
        )
    return now or known


def warn_of_key(pseudonyms: Pseudonyms) -> list[str]:
    """A line where others than its owner may read a key file."""
    if not pseudonyms.path:
        return []
    mode = stat.S_IMODE(os.stat(pseudonyms.path).st_mode)
    if not mode & 0o077:
        return []
    return [
        f"warning: others may read the key file {show_name(pseudonyms.path)} (mode {mode:04o}), and with it tell which "
        "pseudonym is whose. Mend it with `chmod 600`."
    ]


def _make_key_file(path: Path) -> None:
    """Make the user's own key where there is none; of two processes at once one makes it."""
    try:
        if path.exists():
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                stream.write(secrets.token_hex(KEY_BYTES) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            # A link is made whole or not at all, and never over a key that is there.
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            os.unlink(temporary)
    except OSError as error:
        raise UsageError(
            f"the key file {show_name(str(path))} cannot be made: {error.strerror}. Name one with --key-file."
        ) from None


def _read_regular(path: Path) -> bytes:
    """The first bytes of a file, enough to see whether it is a key; pipes and devices are not opened."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UsageError(f"key file {show_name(str(path))} is no regular file; {EXPECTED_KEY}.")
    with path.open("rb") as stream:
        return stream.read(4 * KEY_BYTES)


def _parse_key(content: bytes, path: Path) -> bytes:
    if len(content) == KEY_BYTES:
        return content
    digits = content.strip()
    if len(digits) == 2 * KEY_BYTES:
        with contextlib.suppress(ValueError):
            return bytes.fromhex(digits.decode("ascii"))
    # Of what it holds nothing is shown: it may be a key after all, or another secret.
    raise UsageError(f"key file {show_name(str(path))} holds {len(content)} bytes that are no key; {EXPECTED_KEY}.")
