"""Keyed hashes in the place of the user's own words: in tables, messages and manifests, and the way back."""

from __future__ import annotations

import csv
import json
import os
import stat
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_made import make_series, to_bytes, write_series
from hypothesis import given
from hypothesis import strategies as st

from raysegment.archive.decoder import Decoder
from raysegment.archive.filesystem import read_bytes
from raysegment.archive.index import find_scans, key_of, recorded_finding
from raysegment.archive.lookup import Lookup
from raysegment.archive.manifest import entries
from raysegment.archive.names import show_name
from raysegment.archive.pseudonymise import hide_given, hide_source, resolve_source
from raysegment.archive.pseudonyms import Pseudonyms, load_pseudonyms
from raysegment.archive.sealed import KEY_FILE_VARIABLE, open_name, open_seal, seal_file, seal_source, use_key
from raysegment.archive.split import assign_splits
from raysegment.commands.index import describe_index, index
from raysegment.errors import AccessError, ScanError, UsageError
from raysegment.options import ExportOptions, Finding, Identifiers, IndexOptions, InferOptions
from raysegment.runs.record import describe_choices

WORDS = ("Schmidt", "Anna", "geheim", "Klinik")


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(KEY_FILE_VARIABLE, "")
    monkeypatch.delenv(KEY_FILE_VARIABLE)
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "key").write_bytes(bytes(range(32)))
    (folder / "key").chmod(0o600)
    return str(folder / "key")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two patients with a volume each and one that is damaged, all under telling names."""
    root = tmp_path / "Klinik Nord"
    for patient in ("Schmidt_Anna", "Meier_geheim"):
        folder = root / patient / "visit"
        folder.mkdir(parents=True)
        image = nibabel.Nifti1Image(np.arange(60, dtype=np.uint8).reshape(3, 4, 5), np.diag([1, 1, 2, 1]))
        nibabel.save(image, folder / f"{patient}_t1.nii.gz")
        mask = nibabel.Nifti1Image((np.arange(60).reshape(3, 4, 5) > 30).astype(np.uint8), image.affine)
        nibabel.save(mask, folder / f"{patient}_t1_seg.nii.gz")
    (root / "Schmidt_Anna" / "broken").mkdir()
    (root / "Schmidt_Anna" / "broken" / "Schmidt_bad.nii.gz").write_bytes(b"Schmidt")
    return root


def find(source: Path | str, key: str, **more: object):
    return find_scans(str(source), Finding(pseudonymise=True, key_file=key, **more))


def no_word_in(text: str) -> None:
    assert not [word for word in WORDS if word.lower() in text.lower()], text


@given(st.text(), st.text())
def test_what_is_sealed_can_be_opened_with_the_key_alone(first: str, second: str) -> None:
    one, other = Pseudonyms(bytes(32)), Pseudonyms(bytes([1] * 32))
    assert (seal_file(first, one) == seal_file(second, one)) == (first == second)
    assert seal_file(first, one) != seal_file(first, other)
    assert show_name(seal_file(first, one))[:16] == one.hash("file", first)
    assert "~" not in show_name(seal_source(first, one))


def test_seals_are_opened_in_this_process_and_changed_ones_are_refused(key: str) -> None:
    pseudonyms = use_key(key)
    sealed = seal_file("Schmidt/ä\udcff.nii.gz", pseudonyms)
    assert sealed.endswith(".nii.gz")
    assert open_name(sealed) == "Schmidt/ä\udcff.nii.gz"
    assert open_name("labels.yaml") == "labels.yaml"
    assert open_seal(seal_source("/data/Schmidt", pseudonyms)) == "/data/Schmidt"
    digest, rest = sealed.split("~")
    with pytest.raises(UsageError, match="damaged, or was sealed with another key"):
        open_name(f"{digest}~{'B' if rest[0] != 'B' else 'C'}{rest[1:]}")


def test_an_ending_that_may_be_part_of_an_identifier_goes(key: str) -> None:
    assert "." not in seal_file("1.2.840.99.4711", use_key(key))


def test_a_manifest_holds_none_of_the_users_words(archive: Path, key: str, tmp_path: Path) -> None:
    table = find(archive, key)
    assert table.num_rows == 3
    no_word_in(str(table.to_pylist()) + str(table.schema.metadata))
    out = tmp_path / "out" / "m.parquet"
    found = index(IndexOptions(source=str(archive), out=str(out), pseudonymise=True, key_file=key))
    no_word_in("\n".join(describe_index(found)) + json.dumps(found.as_plain()))
    assert found.summary.problems
    assert not [word for word in WORDS if word.encode() in out.read_bytes()]


def test_scans_are_read_through_their_pseudonyms_also_in_the_child(archive: Path, key: str) -> None:
    table = find(archive, key)
    good = [entry for entry in entries(table) if entry.problem is None]
    bad = next(entry for entry in entries(table) if entry.problem is not None)
    no_word_in(bad.problem or "")
    with Decoder() as decoder:
        decoded = decoder.read(good[0], with_reference=True)
        assert decoded.scan.pixels.size == 60
        assert decoded.reference is not None
        assert decoded.reference.sum() == 29
        with pytest.raises(ScanError) as failed:
            decoder.read(bad)
    no_word_in(str(failed.value))
    with pytest.raises(AccessError) as gone:
        read_bytes(good[0].source, seal_file("Schmidt_Anna/none.nii.gz", load_pseudonyms(key)))
    no_word_in(str(gone.value))
    assert gone.value.__cause__ is None


def test_a_manifest_that_was_written_is_run_from_with_the_key(
    archive: Path, key: str, tmp_path: Path, monkeypatch
) -> None:
    for name in ("m.parquet", "m.csv"):
        out = tmp_path / "out" / name
        index(IndexOptions(source=str(archive), out=str(out), pseudonymise=True, key_file=key))
        monkeypatch.delenv(KEY_FILE_VARIABLE)
        again = find(out, key)
        assert again.select(["scan_id", "files", "fingerprint"]).equals(
            find(archive, key).select(["scan_id", "files", "fingerprint"])
        )
        assert read_bytes(again["source"][0].as_py(), again["files"][0].as_py()[0])


def test_the_same_names_come_again_and_others_with_another_key(archive: Path, key: str, tmp_path: Path) -> None:
    first = find(archive, key)
    assert first.equals(find(archive, key))
    assert key_of(first) == load_pseudonyms(key).fingerprint
    other = tmp_path / "own" / "other"
    other.write_bytes(bytes(32))
    assert not set(first["scan_id"].to_pylist()) & set(find(archive, str(other))["scan_id"].to_pylist())


def test_the_look_up_table_lies_beside_the_key_for_its_owner_alone(archive: Path, key: str) -> None:
    table = find(archive, key)
    path = Lookup(load_pseudonyms(key)).path
    assert path.parent == Path(key).parent
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    rows = list(csv.DictReader(path.open()))
    by_pseudonym = {row["pseudonym"]: row["name"] for row in rows if row["kind"] == "scan"}
    assert {by_pseudonym[scan_id] for scan_id in table["scan_id"].to_pylist()} == {
        "Schmidt_Anna/visit/Schmidt_Anna_t1.nii.gz",
        "Meier_geheim/visit/Meier_geheim_t1.nii.gz",
        "Schmidt_Anna/broken/Schmidt_bad.nii.gz",
    }
    before = path.read_bytes()
    find(archive, key)
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == ["key", "key.lookup.csv", "key.lookup.csv.lock"]


def test_rows_are_added_once_also_after_a_torn_line(key: str) -> None:
    lookup = Lookup(load_pseudonyms(key))
    assert lookup.add([("scan", "1", 'a,"b"\nc'), ("scan", "1", 'a,"b"\nc')]) == 1
    with lookup.path.open("a") as stream:
        stream.write("scan,2")
    assert lookup.add([("scan", "2", "d"), ("scan", "1", 'a,"b"\nc')]) == 1
    assert lookup.read() == [("scan", "1", 'a,"b"\nc'), ("scan", "2", "d")]
    assert lookup.name_of("scan", "2") == "d"


@pytest.mark.parametrize("out", [".", "sub/.."])
def test_a_key_in_the_output_is_refused(archive: Path, key: str, out: str) -> None:
    folder = Path(key).parent
    (folder / "sub").mkdir()
    for more in ({"pseudonymise": True}, {}):
        options = InferOptions(model="m", source=str(archive), out=str(folder / out), key_file=key, **more)
        with pytest.raises(UsageError, match="would tell which pseudonym is whose"):
            hide_source(options)
    assert not Lookup(load_pseudonyms(key)).path.exists()


def test_run_json_gets_the_source_without_its_seal_and_the_table_knows_it(
    archive: Path, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["raysegment", "infer", "m", str(archive), f"--source={archive}", "--out", "o"])
    options = InferOptions(model="m", source=str(archive), out=str(tmp_path / "o"), pseudonymise=True, key_file=key)
    hidden = hide_source(options)
    assert hidden.typed == options.typed
    record = describe_choices(hidden)
    no_word_in(json.dumps(record))
    assert "~" not in record["chosen"]["source"]
    assert hide_given("--out") == "--out"
    assert resolve_source(record["chosen"]["source"], options) == hidden.source
    assert open_seal(hidden.source) == str(archive)


def test_a_split_file_may_use_the_users_words(archive: Path, key: str, tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": ["Schmidt_Anna"], "val": ["Meier_geheim_t1", "Niemand geheim"]}))
    result = assign_splits(find(archive, key), split_file=str(file))
    assert sorted(result.table["split"].to_pylist()) == ["train", "train", "val"]
    no_word_in(str(result.unknown) + str(result.named))


def test_columns_of_a_manifest_that_may_hold_names_are_left_out(archive: Path, key: str, tmp_path: Path) -> None:
    manifest = tmp_path / "Klinik.csv"
    manifest.write_text(
        f"scan_id,source,files,doctor,age\nSchmidt 1,{archive},Schmidt_Anna/visit/Schmidt_Anna_t1.nii.gz,Dr. geheim,7\n"
    )
    table = find(manifest, key)
    assert "doctor" not in table.column_names
    no_word_in(str(table.to_pylist()))


def test_a_pattern_that_finds_nothing_tells_no_name(archive: Path, key: str) -> None:
    for choices in ({"patient_pattern": "(x+)$"}, {"date_pattern": r"(?P<date>\d{8})"}):
        with pytest.raises(UsageError) as refused:
            find(archive, key, **choices)
        no_word_in(str(refused.value))


def test_patient_ids_cannot_be_kept_and_hidden() -> None:
    with pytest.raises(UsageError, match="leave one of them out"):
        Finding(pseudonymise=True, keep_patient_ids=True)


@pytest.mark.parametrize("source", ["", "Klinik Nord"], ids=["without source", "relative source"])
def test_a_manifest_in_the_folder_of_its_scans_is_pseudonymised_too(
    archive: Path, key: str, tmp_path: Path, source: str
) -> None:
    manifest = (tmp_path if source else archive) / "list.csv"
    file = "Schmidt_Anna/visit/Schmidt_Anna_t1.nii.gz"
    manifest.write_text(f"scan_id,files{',source' * bool(source)}\nSchmidt 1,{file}{f',{source}' if source else ''}\n")
    hidden = hide_source(IndexOptions(source=str(manifest), pseudonymise=True, key_file=key))
    table = find(hidden.source, key)
    no_word_in(str(table.to_pylist()))
    assert table["scan_id"].to_pylist() == [load_pseudonyms(key).hash("scan", "Schmidt 1")]
    assert read_bytes(table["source"][0].as_py(), table["files"][0].as_py()[0]) == (archive / file).read_bytes()


def test_dicom_in_a_zip_and_under_uids_is_read_through_its_pseudonyms(key: str, tmp_path: Path) -> None:
    volume = np.arange(120, dtype=np.uint16).reshape(3, 5, 8)
    archive = tmp_path / "Klinik"
    write_series(archive / "Schmidt", make_series(volume), names=[f"1.2.840.77.{number}" for number in range(3)])
    with zipfile.ZipFile(archive / "Schmidt.zip", "w") as packed:
        for number, instance in enumerate(make_series(volume, series="other")):
            packed.writestr(f"Anna/{number}.dcm", to_bytes(instance))
    table = find(archive, key)
    assert table.num_rows == 2
    no_word_in(str(table.to_pylist()))
    assert "840.77" not in str(table.to_pylist())
    assert table.equals(find(archive, key))
    with Decoder() as decoder:
        for entry in entries(table):
            assert decoder.read(entry).scan.pixels.squeeze(3).shape == (3, 5, 8)
    (archive / "Schmidt.zip").write_bytes(b"geheim")
    gone = [entry for entry in entries(table) if any(name.endswith(".dcm") for name in entry.files)]
    with Decoder() as decoder, pytest.raises(ScanError) as failed:
        decoder.read(gone[0])
    no_word_in(str(failed.value))


def test_names_that_messages_escape_are_hidden_in_problems_too(key: str, tmp_path: Path) -> None:
    archive = tmp_path / "Klinik"
    names = [
        "Schmidt\u200bAnna/x.dcm",
        "Schmidt\u00a0Anna.dcm",
        os.fsdecode(b"Schmidt\xfcAnna.dcm"),
        "Schmidt\u200b.zip",
    ]
    for name in names:
        (archive / name).parent.mkdir(parents=True, exist_ok=True)
        (archive / name).write_bytes(b"damaged")
    with zipfile.ZipFile(archive / "Anna\u00a0.zip", "w") as packed:
        packed.writestr("geheim\u200b.dcm", b"damaged")
    table = find(archive, key)
    assert table.num_rows == len(names) + 1
    assert None not in table["problem"].to_pylist()
    no_word_in(str(table.to_pylist()))


def test_problems_of_a_manifest_lose_the_names_of_zips_too(archive: Path, key: str, tmp_path: Path) -> None:
    hidden = "Schmidt\u200b.zip"
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"scan_id,files,problem\nq,{hidden}/Anna.dcm,E: Schmidt\\u200b.zip is a zip.\n")
    (problem,) = find(manifest, key)["problem"].to_pylist()
    assert problem == f"E: {load_pseudonyms(key).hash('file', hidden)} is a zip."


@pytest.mark.parametrize("is_sealed", [True, False], ids=["sealed source", "no source"])
def test_a_key_in_the_output_is_refused_whatever_the_source(archive: Path, key: str, is_sealed: bool) -> None:
    source = seal_source(str(archive), use_key(key)) if is_sealed else None
    options = ExportOptions(tables="t", source=source, out=str(Path(key).parent), to="nifti")
    with pytest.raises(UsageError, match="would tell which pseudonym is whose"):
        hide_source(options, how=Identifiers(pseudonymise=True, key_file=key))


@pytest.mark.parametrize("option", ["keep_patient_ids", "keep_dates"])
def test_what_is_kept_of_headers_is_refused_on_a_manifest(archive: Path, key: str, tmp_path: Path, option: str) -> None:
    manifest = str(tmp_path / "out" / "m.parquet")
    index(IndexOptions(source=str(archive), out=manifest))
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} belongs to folders"):
        find_scans(manifest, Finding(**{option: True}))
    assert find_scans(manifest, recorded_finding({option: True}, manifest)).num_rows == 3


def test_a_key_that_a_manifest_was_not_made_with_is_refused(archive: Path, key: str, tmp_path: Path) -> None:
    plain, of_dicom = str(tmp_path / "out" / "m.parquet"), str(tmp_path / "out" / "d.parquet")
    index(IndexOptions(source=str(archive), out=plain))
    with pytest.raises(UsageError, match="--key-file would change nothing in it"):
        find_scans(plain, Finding(key_file=key))
    assert find_scans(plain, recorded_finding({"key_file": key}, plain), again=True).num_rows == 3
    write_series(tmp_path / "dicom", make_series(np.zeros((3, 4, 5), np.uint16)))
    index(IndexOptions(source=str(tmp_path / "dicom"), out=of_dicom, key_file=key))
    assert find_scans(of_dicom, Finding(key_file=key)).num_rows == 1
    other = tmp_path / "own" / "other"
    other.write_bytes(bytes(32))
    with pytest.raises(UsageError, match=f"was made with the key {load_pseudonyms(key).fingerprint}"):
        find_scans(of_dicom, Finding(key_file=str(other)))
