"""Paths that only the holder of the key can read: what `--pseudonymise` puts in their place.

    pseudonymised:KEY/HASH~SEALED            a source; KEY is the fingerprint of the key
    HASH~SEALED.nii.gz                       a file below it

HASH is the keyed hash of the path, 16 hex digits; SEALED the path itself, enciphered under the key with the hash as its
nonce. That is the construction of Rogaway and Shrimpton (2006), doi:10.1007/11761679_23, with HMAC-SHA256 twice: the
same path always has the same name, and one that somebody changed is refused. Sealed names travel to the processes
that read, which open them at the last moment (`filesystem`); messages, tables and names of exported files get the hash
alone (`drop_seals`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from functools import lru_cache

from raysegment.archive.names import SEALED_SOURCE, extension_of
from raysegment.archive.pseudonyms import Pseudonyms, load_pseudonyms
from raysegment.errors import UsageError

KEY_FILE_VARIABLE = "RAYSEGMENT_KEY_FILE"
"""Where the key of sealed paths lies, for the processes that this one starts."""

KEPT_ENDINGS = frozenset(
    {".nii", ".nii.gz", ".hdr", ".img", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".dcm", ".dicom", ".ima"}
)
"""Of other names nobody knows what stands behind the last dot; in DICOM it may be the end of an identifier."""

FILE_KIND, SOURCE_KIND = "file", "source"

_SOURCE = re.compile(rf"{SEALED_SOURCE}([0-9a-f]{{16}})/([0-9a-f]{{16}})(?:~([A-Za-z0-9_-]*))?(\.[a-z.]+)?")
_FILE = re.compile(r"([0-9a-f]{16})~([A-Za-z0-9_-]*)((?:\.[a-z0-9.]+)?)")


def is_sealed(source: str) -> bool:
    """Whether a source is one that `seal_source` made, with its seal or without."""
    return source.startswith(SEALED_SOURCE)


def key_of_seal(source: str) -> str | None:
    """Fingerprint of the key that a source was sealed with; None where it is not sealed."""
    match = _SOURCE.fullmatch(source)
    return None if match is None else match[1]


def seal_source(source: str, pseudonyms: Pseudonyms) -> str:
    """What stands in the place of a folder, manifest or bucket; a manifest keeps its extension."""
    extension = extension_of(source.split("?")[0])
    ending = extension if extension in (".parquet", ".csv") else ""
    return f"{SEALED_SOURCE}{pseudonyms.fingerprint}/{_seal(source, SOURCE_KIND, pseudonyms)}{ending}"


def seal_file(name: str, pseudonyms: Pseudonyms) -> str:
    """What stands in the place of a file below a source; the extension stays where it is one of scans."""
    return _seal(name, FILE_KIND, pseudonyms) + _ending_of(name)


def hash_file(name: str, pseudonyms: Pseudonyms) -> str:
    """The same without the seal: what messages show."""
    return pseudonyms.hash(FILE_KIND, name) + _ending_of(name)


def open_seal(source: str) -> str:
    """The source that `seal_source` was given.

    Raises:
        UsageError: The key is another one, or not there; or the seal was dropped or damaged.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise UsageError(f"{source[:80]!r} is no pseudonym of a source.")
    fingerprint, digest, sealed, _ = match.groups()
    pseudonyms = current_key()
    if pseudonyms.fingerprint != fingerprint:
        raise UsageError(
            f"the paths were sealed with the key {fingerprint}; the key file {pseudonyms.path} holds "
            f"{pseudonyms.fingerprint}. Give the right one with --key-file."
        )
    if sealed is None:
        raise UsageError(f"{SEALED_SOURCE}{fingerprint}/{digest} has no seal that could be opened.")
    return _open(digest, sealed, SOURCE_KIND, pseudonyms)


def open_name(name: str) -> str:
    """The file below a sealed source that `seal_file` was given; other names, such as `labels.yaml`, as they are."""
    match = _FILE.fullmatch(name)
    return name if match is None else _open(match[1], match[2], FILE_KIND, current_key())


def use_key(key_file: str | None) -> Pseudonyms:
    """Take a key for the sealed paths of this process and of those that it starts.

    Raises:
        UsageError: As `load_pseudonyms`.
    """
    pseudonyms = load_pseudonyms(key_file)
    os.environ[KEY_FILE_VARIABLE] = pseudonyms.path
    return pseudonyms


def current_key() -> Pseudonyms:
    """The key of `use_key`, of this process or of the one that started it.

    Raises:
        UsageError: It is not there.
    """
    path = os.environ.get(KEY_FILE_VARIABLE)
    if path is None:
        raise UsageError("the paths are sealed, and no key was given; give the --key-file that they were sealed with.")
    return _read_once(path)


@lru_cache(maxsize=4)
def _read_once(path: str) -> Pseudonyms:
    return load_pseudonyms(path)


def _ending_of(name: str) -> str:
    extension = extension_of(name)
    return extension if extension in KEPT_ENDINGS else ""


def _seal(text: str, kind: str, pseudonyms: Pseudonyms) -> str:
    digest = pseudonyms.hash(kind, text)
    sealed = _cipher(text.encode("utf-8", "surrogatepass"), digest, kind, pseudonyms)
    return f"{digest}~{base64.urlsafe_b64encode(sealed).decode().rstrip('=')}"


def _open(digest: str, sealed: str, kind: str, pseudonyms: Pseudonyms) -> str:
    try:
        data = base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))
        text = _cipher(data, digest, kind, pseudonyms).decode("utf-8", "surrogatepass")
    except (binascii.Error, UnicodeDecodeError):
        text = None
    if text is None or not hmac.compare_digest(pseudonyms.hash(kind, text), digest):
        raise UsageError(f"the sealed name {digest} is damaged, or was sealed with another key.")
    return text


def _cipher(data: bytes, digest: str, kind: str, pseudonyms: Pseudonyms) -> bytes:
    """Add a keystream; to do it twice gives the data back."""
    key = bytes.fromhex(pseudonyms.hash(f"seal {kind}", digest, 64))
    blocks = (hmac.new(key, number.to_bytes(8), hashlib.sha256).digest() for number in range(-(-len(data) // 32)))
    return bytes(one ^ other for one, other in zip(data, b"".join(blocks), strict=False))
