"""The day of a scan, from a manifest's column or from its name."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegment.archive.dates import compile_date_pattern, count_days, match_dates, parse_date
from raysegment.archive.index import find_scans, warn_of_dates
from raysegment.archive.manifest import entries, read_manifest, write_manifest
from raysegment.archive.selection import parse_condition, select_scans
from raysegment.commands.index import describe_index, index
from raysegment.errors import UsageError
from raysegment.imaging.phantom import write_archive
from raysegment.options import Finding, IndexOptions

LGG = r"_(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)$"


@given(st.datetimes(min_value=datetime(1000, 1, 1)), st.sampled_from(["%Y-%m-%d", "%Y%m%d", "%Y-%m-%dT%H:%M:%S", "%c"]))
def test_a_date_is_read_as_it_was_written(moment: datetime, written: str) -> None:
    text = moment.strftime(written)
    if written == "%c":
        with pytest.raises(ValueError, match="is no date"):
            parse_date(text)
    else:
        assert parse_date(text) == moment.date()


@pytest.mark.parametrize("text", ["2024-13-01", "2023-02-29", "31.12.2024", "2024-0131", "24-01-31", "2024-01-31 noon"])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_date(text)


def test_of_a_timestamp_the_day_is_taken_as_it_is_written() -> None:
    assert parse_date("2024-01-31T23:30:00-11:00") == date(2024, 1, 31)
    assert parse_date("2024-01-31 00:15:00.123456789Z") == date(2024, 1, 31)


@pytest.mark.parametrize(
    ("pattern", "names", "found"),
    [
        (LGG, ["TCGA_CS_4941_19960909", "TCGA_DU_8163"], [date(1996, 9, 9), None]),
        (LGG, ["a_20240131", "b_20241301", "c_00000000"], [date(2024, 1, 31), None, None]),
        (r"ses-(?P<date>\d+)", ["sub-1/ses-20240131", "sub-1/ses-1"], [date(2024, 1, 31), None]),
        (r"(?P<day>\d\d?)\.(?P<month>\d\d?)\.(?P<year>\d+)", ["3.4.2021", "3.4.21"], [date(2021, 4, 3), None]),
    ],
)
def test_a_pattern_finds_days_in_names(pattern: str, names: list[str], found: list[date | None]) -> None:
    compiled = compile_date_pattern(pattern)
    assert compiled is not None
    assert match_dates(names, compiled) == found


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(", "is no regular expression"),
        (r"(\d{8})", "has no groups that make a date"),
        (r"(?P<year>\d{4})(?P<month>\d\d)", "has no groups that make a date"),
        (r"x(?P<date>\d{8})", "finds no date in any scan_id: nothing in PHANTOM_0001"),
        (r"(?P<date>\d{4})", "finds no date in any scan_id: '0001' in PHANTOM_0001 is none"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(tmp_path: Path, pattern: str, said: str) -> None:
    write_archive(tmp_path / "archive", patients=2, seed=1, image_size=16, slices=2)
    with pytest.raises(UsageError, match=r"--date-pattern") as refused:
        find_scans(str(tmp_path / "archive"), Finding(date_pattern=pattern))
    assert said in str(refused.value)


def test_names_give_dates_to_a_folder_and_to_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "archive"
    write_archive(archive, patients=3, seed=1, image_size=16, slices=2)
    (archive / "PHANTOM_0001").rename(archive / "CASE_0001_19960909")
    (archive / "PHANTOM_0002").rename(archive / "CASE_0001_19970101")
    found = index(IndexOptions(source=str(archive), out=str(tmp_path / "m.csv"), date_pattern=LGG))
    assert found.table["scan_date"].to_pylist() == [date(1996, 9, 9), date(1997, 1, 1), None]
    assert found.summary.with_date == 2
    lines = "\n".join(describe_index(found))
    assert "scans with date             2" in lines
    assert "warning: --date-pattern finds no date in PHANTOM_0003; these scans have none" in lines
    again = find_scans(str(tmp_path / "m.csv"))
    assert again["scan_date"].to_pylist() == found.table["scan_date"].to_pylist()
    assert warn_of_dates(again) == []
    assert [entry.scan_date for entry in entries(again)] == found.table["scan_date"].to_pylist()
    years = find_scans(str(tmp_path / "m.csv"), Finding(date_pattern=r"_(?P<date>1997\d{4})"))
    assert years["scan_date"].to_pylist() == [None, date(1997, 1, 1), None], "the pattern decides, not the column"
    late = select_scans(again, where=[parse_condition(["scan_date", ">", "1996-12-31"], "where")])
    assert late["scan_id"].to_pylist() == ["CASE_0001_19970101"]
    assert json.loads(json.dumps(found.as_plain()))["with_date"] == 2


ZONE = timezone(timedelta(hours=-11))


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["2024-01-31", None]),
        pa.array(["20240131", " "]),
        pa.array(["2024-01-31T23:00:00Z", None]).dictionary_encode(),
        pa.array([20240131, None]),
        pa.array([date(2024, 1, 31), None]),
        pa.array([date(2024, 1, 31), None], pa.date64()),
        pa.array([datetime(2024, 1, 31, 23), None], pa.timestamp("ns")),
        pa.array([datetime(2024, 1, 31, 23, tzinfo=ZONE), None], pa.timestamp("us", "-11:00")),
    ],
    ids=lambda column: str(column.type)[:30],
)
def test_a_manifest_may_hold_days_in_many_types(tmp_path: Path, column: pa.Array) -> None:
    table = pa.table({"scan_id": ["a", "b"], "files": ["a.tif", "b.tif"], "scan_date": column})
    table = table.set_column(1, "files", pa.array([["a.tif"], ["b.tif"]]))
    pq.write_table(table, tmp_path / "m.parquet")
    assert read_manifest(str(tmp_path / "m.parquet"))["scan_date"].to_pylist() == [date(2024, 1, 31), None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("31.12.2020", "row 2, scan b: scan_date is '31.12.2020'; expected a date such as 2024-01-31 or 20240131"),
        ("2020-02-30", "row 2, scan b: scan_date is '2020-02-30'"),
        ("2020-02-03 at noon", "row 2, scan b: scan_date is '2020-02-03 at noon'"),
        ("1577836800", "row 2, scan b: scan_date is '1577836800'"),
    ],
)
def test_a_wrong_date_names_its_row(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "m.csv").write_text(f"scan_id,files,scan_date\na,a.tif,\nb,b.tif,{text}\nc,c.tif,{text}\n")
    with pytest.raises(UsageError) as refused:
        read_manifest(str(tmp_path / "m.csv"))
    assert said in str(refused.value)
    assert refused.value.exit_code == 2


def test_numbers_that_are_no_dates_are_refused(tmp_path: Path) -> None:
    table = pa.table({"scan_id": ["a"], "files": pa.array([["a.tif"]]), "scan_date": [1.5]})
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="scan_date holds double; expected a date"):
        read_manifest(str(tmp_path / "m.parquet"))
    far = table.set_column(2, "scan_date", pa.array([10**8], pa.int32()).cast(pa.date32()))
    pq.write_table(far, tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="not in the years 1 to 9999"):
        read_manifest(str(tmp_path / "m.parquet"))


def test_a_manifest_of_an_older_version_has_no_dates(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", patients=1, seed=1, image_size=16, slices=1)
    table = find_scans(str(tmp_path / "archive"))
    pq.write_table(table.drop_columns(["scan_date"]), tmp_path / "m.parquet")
    older = read_manifest(str(tmp_path / "m.parquet"))
    assert older["scan_date"].to_pylist() == [None]
    write_manifest(older, str(tmp_path / "m.csv"))
    assert read_manifest(str(tmp_path / "m.csv"))["scan_date"].to_pylist() == [None]


def test_days_are_counted_from_the_first_scan_of_each_patient() -> None:
    dates = [date(2020, 3, 1), None, date(2020, 2, 1), date(1999, 1, 1), None]
    assert count_days(["a", "a", "a", "b", "c"], dates) == [29, None, 0, 0, None]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.dates())))
def test_a_day_and_the_first_date_give_the_date_back(scans: list[tuple[str, date]]) -> None:
    days = count_days([patient for patient, _ in scans], [day for _, day in scans])
    for (patient, day), after in zip(scans, days, strict=True):
        assert min(other for who, other in scans if who == patient) + timedelta(days=after) == day
