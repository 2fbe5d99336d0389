"""Scans that a process died on, tried again in ever smaller groups, until the one to blame is alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from raysegment.errors import ReaderCrashedError, ScanError, WorkerCrashedError

PROCESSES: dict[type[ScanError], str] = {
    ReaderCrashedError: "the reading process",
    WorkerCrashedError: "the inference worker",
}
"""What died, by the error of a scan that it always dies on."""


@dataclass
class Suspects:
    """Whom to try how, as a search by halves: one bad scan among n is alone after about log2(n) deaths.

    Attributes:
        max_attempts: Deaths after which a scan that was alone is given up.
        groups: scan_ids to be tried together, each group by one process that has nothing else in hand.
        hopeless: Scans that are given up, and their errors, until they are taken.
        num_accusations: How often something died; grows as long as the search goes on.
    """

    max_attempts: int
    groups: list[list[str]] = field(default_factory=list)
    hopeless: dict[str, ScanError] = field(default_factory=dict)
    num_accusations: int = 0
    _deaths: Counter[str] = field(default_factory=Counter)

    @property
    def scan_ids(self) -> list[str]:
        """All suspects, in the order of their groups."""
        return [scan_id for group in self.groups for scan_id in group]

    def accuse(self, blocks: list[list[str]], error_type: type[ScanError], cause: str) -> None:
        """A process died with these blocks unfinished: several are tried one by one, one is tried in halves.

        Args:
            blocks: scan_ids of each.
            error_type: Of a scan that is given up.
            cause: What is known of the death.
        """
        accused = [scan_id for block in blocks for scan_id in block]
        if not accused:
            return
        self.num_accusations += 1
        self._deaths.update(accused)
        self.keep_only({*self.scan_ids}.difference(accused))
        if len(accused) == 1 and self._deaths[accused[0]] >= self.max_attempts:
            self.hopeless[accused[0]] = error_type(
                f"{accused[0]}: {PROCESSES[error_type]} died on it, alone in the end, at {self._deaths[accused[0]]} "
                f"attempts; the last time: {cause}"
            )
            return
        self.groups += [list(block) for block in blocks if block] if len(blocks) > 1 else _halve(blocks[0])

    def keep_only(self, scan_ids: set[str]) -> None:
        """Forget the suspicion of all others."""
        kept = ([scan_id for scan_id in group if scan_id in scan_ids] for group in self.groups)
        self.groups = [group for group in kept if group]

    def take_hopeless(self) -> dict[str, ScanError]:
        """The scans that were given up since the last call."""
        taken, self.hopeless = self.hopeless, {}
        return taken


def _halve(block: list[str]) -> list[list[str]]:
    middle = (len(block) + 1) // 2
    return [half for half in (block[:middle], block[middle:]) if half]
