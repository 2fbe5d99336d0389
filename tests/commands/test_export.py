from __future__ import annotations

import numpy as np
import pytest
import tifffile

from raysegment.commands.export import export_masks
from raysegment.errors import UsageError
from raysegment.options import ExportOptions
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part


def write_tables(folder, masks: dict[str, np.ndarray]) -> None:
    place = Place(str(folder))
    prepare_tables(place)
    rows = [
        ScanRows({"scan_id": name, "status": "ok"}, (), encode_mask(name, mask, labels={"lesion": 1}))
        for name, mask in masks.items()
    ]
    publish_part(place, "_staging/1", stage_part(place, "_staging/1", rows).name)


def test_masks_become_viewable_files_under_the_scans_names(tmp_path):
    mask = np.zeros((3, 4, 5), np.uint8)
    mask[1, 2, 3] = 1
    write_tables(tmp_path / "tables", {"site/patient 1": mask, "image.tif": mask[:1]})
    result = export_masks(ExportOptions(tables=str(tmp_path / "tables"), out=str(tmp_path / "files")))
    assert result.num_files == 2
    shown = tifffile.imread(tmp_path / "files" / "site" / "patient 1_mask.tif")
    assert shown.shape == (3, 4, 5)
    assert (shown.max(), shown.astype(int).sum()) == (255, 255)
    assert tifffile.imread(tmp_path / "files" / "image_mask.tif").shape == (4, 5)


def test_no_scan_id_leads_out_of_the_folder_and_none_overwrites_another(tmp_path):
    mask = np.ones((1, 2, 2), np.uint8)
    names = ["../../outside", "/absolute", "a.tif", "a.png", "new\nline", ".."]
    write_tables(tmp_path / "tables", dict.fromkeys(names, mask))
    export_masks(ExportOptions(tables=str(tmp_path / "tables"), out=str(tmp_path / "files")))
    found = sorted(str(path.relative_to(tmp_path / "files")) for path in (tmp_path / "files").rglob("*.tif"))
    expected = ["a-2_mask.tif", "a_mask.tif", "absolute_mask.tif", "new_line_mask.tif", "outside_mask.tif"]
    assert found == [*expected, "scan_mask.tif"]
    assert not list(tmp_path.glob("*.tif"))


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(UsageError, match="has no masks"):
        export_masks(ExportOptions(tables=str(tmp_path), out=str(tmp_path / "files")))
