"""A hostile archive of DICOM from the command's options to the exported files: good scans are done, each bad one is a
typed row, and no word of a header is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from tables import assert_whole, read_table
from untrained import save_untrained

from raysegment.commands.export import export_masks
from raysegment.commands.infer import infer
from raysegment.errors import EXIT_DONE, EXIT_SOME_SCANS_FAILED
from raysegment.options import ExportOptions, InferOptions
from raysegment.scan import Labels

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]


def words_told(folder: Path, printed: str, planted: tuple[str, ...]) -> list[str]:
    """Planted words that stand in what was printed, in files or in their names."""
    told = [printed.encode(), *(str(path).encode() for path in folder.rglob("*"))]
    told += [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return [word for word in planted if any(word.encode() in text for text in told)]


def test_good_scans_of_a_hostile_archive_of_dicom_are_segmented_and_exported(tmp_path, capfd):
    from dicom_hostile import BAD, GOOD, PLANTED, write_hostile

    write_hostile(tmp_path / "archive")
    model = save_untrained(tmp_path / "model", Labels(("whole", "core"), ((1, 2), (2,))), num_channels=1)
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    out = tmp_path / "out"
    result = infer(InferOptions(model=str(model), source=str(tmp_path / "archive"), out=str(out), key_file=str(key)))
    assert result.exit_code == EXIT_SOME_SCANS_FAILED
    scans = read_table(out, "scans").set_index("scan_id")
    done = scans.index[scans["status"] == "ok"]
    assert sorted(scan_id.rpartition("/")[0].partition("/")[0] for scan_id in done) == sorted(GOOD)
    errors = {scan_id.partition("/")[0]: row["error_type"] for scan_id, row in scans.iterrows() if scan_id not in done}
    assert len(scans) == len(GOOD) + len(BAD)
    assert {name: error or errors[name] for name, error in BAD.items()} == errors
    assert assert_whole(out, num_labels=2) == len(GOOD) + len(BAD)
    for form, files_each in (("nifti", 2), ("bids", 2), ("dicom-seg", 1)):
        files = tmp_path / "names travel" if form == "dicom-seg" else tmp_path / "files" / form
        exported = export_masks(ExportOptions(tables=str(out), out=str(files), to=form))
        assert (exported.num_files, exported.exit_code) == (files_each * len(GOOD), EXIT_DONE), exported.failures
    assert words_told(out, "".join(capfd.readouterr()), PLANTED) == []
    assert words_told(tmp_path / "files", "", PLANTED) == []
