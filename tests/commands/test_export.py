from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile

from raysegment.archive.own_folders import EXPORT_FILE
from raysegment.commands import export
from raysegment.commands.export import export_masks
from raysegment.errors import DamagedTablesError, OutputError, UsageError
from raysegment.options import ExportOptions
from raysegment.runs.export_names import name_files
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part


def write_tables(folder, masks: dict[str, np.ndarray], labels: dict[str, int] | None = None) -> None:
    place = Place(str(folder))
    prepare_tables(place)
    rows = [
        ScanRows(
            {"scan_id": name, "status": "ok", "num_slices": len(mask)},
            (),
            encode_mask(name, mask, labels=labels or {"lesion": 1}),
        )
        for name, mask in masks.items()
    ]
    publish_part(place, "_staging/1", stage_part(place, "_staging/1", rows).name)


def test_masks_become_viewable_files_under_the_scans_names(tmp_path):
    mask = np.zeros((3, 4, 5), np.uint8)
    mask[1, 2, 3] = 1
    write_tables(tmp_path / "tables", {"site/patient 1": mask, "image.tif": mask[:1]})
    result = export_masks(ExportOptions(tables=str(tmp_path / "tables"), out=str(tmp_path / "files")))
    assert result.num_files == 2
    shown = tifffile.imread(tmp_path / "files" / "site" / "patient 1_pred.tif")
    assert shown.shape == (3, 4, 5)
    assert (shown.max(), shown.astype(int).sum()) == (255, 255)
    assert tifffile.imread(tmp_path / "files" / "image_pred.tif").shape == (4, 5)


def test_several_labels_keep_their_values_and_overlapping_ones_come_one_after_the_other(tmp_path):
    values = np.zeros((3, 4, 5), np.uint16)
    values[1, 2, 3], values[2, 0, 0] = 1, 300
    planes = np.stack([values != 0, values == 300]).view(np.uint8)
    for name, mask, labels in (("apart", values, {"a": 1, "b": 300}), ("nested", planes, {"WT": 1, "ET": 1})):
        write_tables(tmp_path / name, {"scan": mask, "flat": mask[..., 2:, :, :]}, labels)
        export_masks(ExportOptions(tables=str(tmp_path / name), out=str(tmp_path / f"{name}-files")))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "apart-files" / "scan_pred.tif"), values)
    with tifffile.TiffFile(tmp_path / "nested-files" / "scan_pred.tif") as file:
        assert (file.series[0].axes, len(file.pages)) == ("CZYX", 6)
        np.testing.assert_array_equal(file.asarray(), planes * 255)
    assert tifffile.imread(tmp_path / "nested-files" / "flat_pred.tif").shape == (2, 4, 5)


def test_one_label_of_any_value_is_shown_as_0_and_255(tmp_path):
    mask = np.full((2, 3, 3), 9, np.uint8)
    mask[0, 0] = 0
    write_tables(tmp_path / "tables", {"scan": mask}, {"a": 9})
    export_masks(ExportOptions(tables=str(tmp_path / "tables"), out=str(tmp_path / "files")))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "files" / "scan_pred.tif"), (mask != 0) * 255)


def test_no_scan_id_leads_out_of_the_folder_and_none_overwrites_another(tmp_path):
    mask = np.ones((1, 2, 2), np.uint8)
    names = ["../../outside", "/absolute", "a.tif", "a.png", "new\nline", ".."]
    write_tables(tmp_path / "tables", dict.fromkeys(names, mask))
    export_masks(ExportOptions(tables=str(tmp_path / "tables"), out=str(tmp_path / "files")))
    found = sorted(str(path.relative_to(tmp_path / "files")) for path in (tmp_path / "files").rglob("*.tif"))
    expected = ["a-2_pred.tif", "a_pred.tif", "absolute_pred.tif", "new_line_pred.tif", "outside_pred.tif"]
    assert found == [*expected, "scan_pred.tif"]
    assert not list(tmp_path.glob("*.tif"))


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(UsageError, match="has no masks"):
        export_masks(ExportOptions(tables=str(tmp_path), out=str(tmp_path / "files")))


def test_the_list_of_files_is_there_before_the_first_and_true_after_a_failure(tmp_path, monkeypatch):
    mask = np.ones((1, 2, 2), np.uint8)
    write_tables(tmp_path / "tables", dict.fromkeys(("a", "b", "c"), mask))
    options = ExportOptions(tables=str(tmp_path / "tables"), out=str(tmp_path / "files"))
    listed = tmp_path / "files" / EXPORT_FILE
    seen = []

    def fail_at_the_second(path, *_, **__):
        seen.append(json.loads(listed.read_text())["files"])
        if len(seen) == 2:
            raise OutputError("the disk is gone")
        path.write_bytes(b"mask")

    monkeypatch.setattr(export, "write_mask", fail_at_the_second)
    with pytest.raises(OutputError):
        export_masks(options)
    monkeypatch.undo()
    assert seen[0] == ["a_pred.tif", "b_pred.tif", "c_pred.tif"]
    assert len(json.loads(listed.read_text())["files"]) == 1
    assert export_masks(options).num_files == 3
    assert len(json.loads(listed.read_text())["files"]) == 3


def test_a_list_that_is_damaged_ends_the_export_before_anything_is_replaced(tmp_path):
    write_tables(tmp_path / "tables", {"a": np.ones((1, 2, 2), np.uint8)})
    (tmp_path / "files").mkdir()
    for content in ("", "[]", '{"format": "raysegment-export"}'):
        (tmp_path / "files" / EXPORT_FILE).write_text(content)
        with pytest.raises(UsageError, match="damaged"):
            export_masks(ExportOptions(tables=str(tmp_path / "tables"), out=str(tmp_path / "files")))
    assert os.listdir(tmp_path / "files") == [EXPORT_FILE]


def test_a_link_in_the_folder_does_not_lead_the_export_elsewhere(tmp_path):
    write_tables(tmp_path / "tables", {"a": np.ones((1, 2, 2), np.uint8)})
    options = ExportOptions(tables=str(tmp_path / "tables"), out=str(tmp_path / "files"))
    export_masks(options)
    write_tables(tmp_path / "tables", {"site/b": np.ones((1, 2, 2), np.uint8)})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "files" / "site").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="leads out"):
        export_masks(options)
    assert not os.listdir(tmp_path / "elsewhere")


def test_paths_too_long_for_the_system_come_in_one_piece():
    deep = "/".join(["folder"] * 900)
    names = name_files([deep + "/a", deep + "/b", "short/a"], max_bytes=4000)
    assert len(set(names.values())) == 3
    assert names["short/a"] == "short/a_pred.tif"
    assert all(len(name) <= 255 for name in names.values())


@pytest.mark.parametrize("damage", [b"", b"no zlib"])
def test_a_mask_that_does_not_unpack_names_its_part(damage, tmp_path):
    write_tables(tmp_path / "tables", {"a": np.ones((1, 2, 2), np.uint8)})
    (part,) = (tmp_path / "tables" / "masks").iterdir()
    table = pq.read_table(part)
    spoilt = pa.array([damage], table.schema.field("mask").type)
    pq.write_table(table.set_column(table.schema.get_field_index("mask"), "mask", spoilt), part)
    with pytest.raises(DamagedTablesError, match=f"masks/{part.name}"):
        export_masks(ExportOptions(tables=str(tmp_path / "tables"), out=str(tmp_path / "files")))


def test_tables_of_an_older_version_are_exported_too(tmp_path):
    write_tables(tmp_path / "tables", {"a": np.ones((1, 2, 2), np.uint8)})
    (part,) = (tmp_path / "tables" / "scans").iterdir()
    pq.write_table(pq.read_table(part).drop_columns(["slice_axis"]), part)
    assert export_masks(ExportOptions(tables=str(tmp_path / "tables"), out=str(tmp_path / "files"))).num_files == 1
