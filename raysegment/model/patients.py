"""Whom a network was trained on, so that it can be asked for one patient, and does not tell them.

Identifiers are short, and short texts are found by trying all of them. So they are hashed with scrypt (RFC 7914), which
takes milliseconds for each try, and with a salt of the bundle's own, so that no try counts for two bundles and nobody
sees that two bundles share a patient. The salt comes from the weights: one training gives one `model_id`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysegment.model.bundle import Bundle

SCRYPT_COST = 2**10
"""Three milliseconds and 1 MB a patient: thousands are looked up in seconds, and ten million tries take a day."""
SCRYPT_BLOCK, SCRYPT_LANES = 8, 1
MAX_SCRYPT_BYTES = 2**26
HASH_BYTES = 16


@dataclass(frozen=True)
class SaltedPatients:
    """Patients hashed with one salt.

    Attributes:
        salt: Hex digits.
        hashes: Of the patients, in hex digits.
        cost: scrypt's n.
        block: scrypt's r.
        lanes: scrypt's p.
    """

    salt: str
    hashes: frozenset[str]
    cost: int = SCRYPT_COST
    block: int = SCRYPT_BLOCK
    lanes: int = SCRYPT_LANES

    def hash(self, patient_id: str) -> str:
        """What stands for a patient here."""
        return _hash_slowly(patient_id, self.salt, self.cost, self.block, self.lanes)

    @property
    def as_plain(self) -> dict[str, Any]:
        """As model.json has it."""
        numbers = {"n": self.cost, "r": self.block, "p": self.lanes}
        return {"scrypt": numbers, "salt": self.salt, "hashes": sorted(self.hashes)}


@dataclass(frozen=True)
class SeenPatients:
    """Patients that a bundle's networks were trained on.

    Attributes:
        salted: Of this bundle and of those that it comes from, each with its own salt.
        unsalted: SHA-256 of identifiers, as versions before 0.6 stored them.
    """

    salted: tuple[SaltedPatients, ...] = ()
    unsalted: frozenset[str] = frozenset()

    def __contains__(self, patient_id: str) -> bool:
        if self.unsalted and hash_unsalted(patient_id) in self.unsalted:
            return True
        return any(group.hash(patient_id) in group.hashes for group in self.salted if group.hashes)

    def __len__(self) -> int:
        return len(self.unsalted) + sum(len(group.hashes) for group in self.salted)

    @property
    def as_plain(self) -> list[Any]:
        """As model.json has it: a text for each patient of an older version, else an object for each salt."""
        return [*sorted(self.unsalted), *(group.as_plain for group in self.salted)]


def count_seen(bundle: Bundle, patients: Iterable[str], key: str | None) -> int | None:
    """How many patients a bundle's networks were trained on; None where another key named them, so that nobody knows.

    Args:
        bundle: The model.
        patients: Their identifiers, of which some may stand more than once.
        key: Fingerprint of the key that they are pseudonyms of; None where they are none.
    """
    if None not in (bundle.key, key) and bundle.key != key:
        return None
    return sum(map(bundle.has_seen, set(patients)))


def read_patients(items: Iterable[Any]) -> SeenPatients:
    """Whom model.json says that networks were trained on.

    Raises:
        ValueError: An item is neither a hash nor an object with them, or asks for too much memory.
        KeyError: An object lacks one of its parts.
    """
    salted: dict[str, SaltedPatients] = {}
    unsalted = set()
    for item in items:
        if isinstance(item, str):
            unsalted.add(item)
        elif isinstance(item, Mapping):
            group = _read_group(item)
            before = salted.get(group.salt)
            salted[group.salt] = group if before is None else _join(before, group)
        else:
            raise ValueError(f"training_patients holds {type(item).__name__}")
    return SeenPatients(tuple(salted.values()), frozenset(unsalted))


def hash_patients(patients: Iterable[str], inherited: Iterable[Any], secret: str) -> SeenPatients:
    """Whom a new bundle's networks were trained on.

    Args:
        patients: Their identifiers.
        inherited: Items as in model.json, of the bundles that it comes from; those who are among `patients` are not
            kept a second time.
        secret: What no other bundle has, such as hashes of the weights; the salt is made of it.
    """
    names = sorted(set(patients))
    before = read_patients(inherited)
    kept = []
    for group in before.salted:
        rest = group.hashes - set(map(group.hash, names))
        if rest:
            kept.append(SaltedPatients(group.salt, rest, group.cost, group.block, group.lanes))
    salt = hashlib.sha256(f"raysegment training patients\0{secret}".encode()).hexdigest()[: 2 * HASH_BYTES]
    own = SaltedPatients(salt, frozenset())
    own = SaltedPatients(salt, frozenset(map(own.hash, names)))
    unsalted = before.unsalted - set(map(hash_unsalted, names))
    return SeenPatients((*([own] if names else []), *kept), frozenset(unsalted))


def hash_unsalted(patient_id: str) -> str:
    """SHA-256 of a patient's identifier, as versions before 0.6 stored it."""
    return hashlib.sha256(patient_id.encode("utf-8", "surrogateescape")).hexdigest()


@lru_cache(maxsize=2**16)
def _hash_slowly(patient_id: str, salt: str, cost: int, block: int, lanes: int) -> str:
    text = patient_id.encode("utf-8", "surrogateescape")
    return hashlib.scrypt(
        text, salt=bytes.fromhex(salt), n=cost, r=block, p=lanes, maxmem=MAX_SCRYPT_BYTES, dklen=HASH_BYTES
    ).hex()


def _read_group(item: Mapping[str, Any]) -> SaltedPatients:
    numbers = {name: int(item["scrypt"][name]) for name in "nrp"}
    cost, block, lanes = numbers["n"], numbers["r"], numbers["p"]
    if not 1 < cost <= 2**20 or cost & (cost - 1) or not 0 < 128 * cost * block * lanes < MAX_SCRYPT_BYTES // 2:
        raise ValueError(f"scrypt with {numbers} is out of bounds")
    return SaltedPatients(bytes.fromhex(item["salt"]).hex(), frozenset(map(str, item["hashes"])), cost, block, lanes)


def _join(one: SaltedPatients, other: SaltedPatients) -> SaltedPatients:
    if (one.cost, one.block, one.lanes) != (other.cost, other.block, other.lanes):
        raise ValueError(f"salt {one.salt} stands with different numbers of scrypt")
    return SaltedPatients(one.salt, one.hashes | other.hashes, one.cost, one.block, one.lanes)
