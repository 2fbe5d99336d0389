"""Segment an archive as `infer` does, without Ray and with a made-up network: `segment_planted.py ARCHIVE OUT`."""

from __future__ import annotations

import sys
from pathlib import Path

from test_measure_command import segment

if __name__ == "__main__":
    rows = segment(Path(sys.argv[1]), Path(sys.argv[2]), num_channels=1, network=lambda batch: batch[..., :1] * 0 + 0.9)
    print(f"{len(rows)} scans, of which {sum(row.is_failed for row in rows)} failed")
