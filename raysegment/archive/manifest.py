"""The manifest: an Arrow table with one row per scan, kept as Parquet or CSV."""

from __future__ import annotations

import errno
import io
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raysegment.archive.dates import read_dates
from raysegment.archive.filesystem import check_regular, describe, folder_of, is_uri, open_source
from raysegment.archive.formats import is_series, readers_by_extension
from raysegment.archive.names import extension_of, show_name
from raysegment.archive.sealed import is_sealed, key_of_seal, open_seal
from raysegment.errors import AccessError, DiskFullError, UsageError
from raysegment.scan import ScanEntry

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("scan_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("reader", pa.string(), nullable=False),
        pa.field("files", pa.list_(pa.string()), nullable=False),
        pa.field("reference_files", pa.list_(pa.string()), nullable=False),
        pa.field("num_files", pa.int32(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("channels", pa.int32()),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("split", pa.string()),
        pa.field("channel_names", pa.list_(pa.string()), nullable=False),
        pa.field("problem", pa.string()),
        pa.field("scan_date", pa.date32()),
        pa.field("scan_day", pa.int32()),
    ]
)
"""Columns of the manifest. A manifest may carry more columns; they are kept. `scan_date` is the day on which the scan
was made, null where nobody says; `archive/dates` has what it may be written as. `scan_day` are the days since the
patient's first scan in the archive, where the days themselves are not to be known."""

FINGERPRINT_MODE = b"raysegment.fingerprint"
"""Key of a manifest's metadata: how its fingerprints were made, `stat` or `content`."""

KEY = b"raysegment.key"
"""Key of a manifest's metadata: the fingerprint of the secret key that its pseudonyms were made with."""

PSEUDONYMISED = b"raysegment.pseudonymised"
"""Key of the metadata of a manifest in which keyed hashes stand for scans, patients and paths."""

MODE_COLUMN = "fingerprint_mode"
"""The same in CSV, which has no metadata."""

MANIFEST_SUFFIXES = (".parquet", ".csv")
LIST_COLUMNS = ("files", "reference_files", "channel_names")
ROWS_PER_GROUP = 20_000


def is_manifest(path: str) -> bool:
    """Whether a source's name says that it is a manifest."""
    return path.split("?")[0].lower().endswith(MANIFEST_SUFFIXES)


def read_manifest(path: str) -> pa.Table:
    """Read a manifest, Parquet or CSV.

    In CSV a list of files or of channels is a JSON array, or the one name as it is. Only `scan_id` and `files` must be
    there: `source` is else the manifest's folder, `patient_id` the scan_id, `reader` what the first file's extension
    says, and the rest empty. A relative `source` starts from the manifest's folder.

    Args:
        path: Local file or URI; a folder of Parquet files, as other programs write it, is one manifest too.

    Returns:
        A table with the columns of MANIFEST_SCHEMA, then any others.

    Raises:
        UsageError: No such file, not a manifest, no rows, or rows that name one scan_id twice.
    """
    filesystem, root = open_source(path)
    # As it is: what is sealed now would count as sealed in the file.
    folder = folder_of(open_seal(path) if is_sealed(path) else path)
    try:
        if isinstance(filesystem, pafs.LocalFileSystem) and not os.path.isdir(root):
            check_regular(root, path)
        if path.split("?")[0].lower().endswith(".csv"):
            with filesystem.open_input_stream(root) as stream:
                table = _from_csv(stream)
        else:
            table = pq.read_table(root, filesystem=filesystem)
    except FileNotFoundError:
        raise UsageError(f"manifest {show_name(path)} does not exist.") from None
    except AccessError as error:
        raise UsageError(f"manifest {error}") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{show_name(path)} cannot be read as a manifest: {describe(error)}") from error
    if not table.num_rows:
        raise UsageError(f"{show_name(path)} has no rows; a manifest has one for each scan.")
    return _conform(table, path, folder)


def write_manifest(table: pa.Table, path: str) -> None:
    """Write a manifest, Parquet or (by the name's end) CSV; a reader sees the old file or the new one, never half.

    Raises:
        UsageError: No file of that name can be written there.
        DiskFullError: No space is left; an old file stays.
    """
    try:
        _write_in_one_step(table, path)
    except (pa.ArrowException, OSError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"no space left while writing {show_name(path)}; make room and run again.") from error
        raise UsageError(f"--out {show_name(path)} cannot be written: {describe(error)}.") from error


def _write_in_one_step(table: pa.Table, path: str) -> None:
    as_csv = path.lower().endswith(".csv")
    if is_uri(path):
        filesystem, root = open_source(path)
        with filesystem.open_output_stream(root) as stream:
            _write(table, stream, as_csv)
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileExistsError(errno.EEXIST, "something else has that name")
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{uuid.uuid4().hex}.partial")
    try:
        with open(temporary, "wb") as stream:
            _write(table, stream, as_csv)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def to_table(entries: Iterable[ScanEntry]) -> pa.Table:
    """The table of some scans."""
    rows = list(entries)
    columns = {field.name: [getattr(entry, field.name) for entry in rows] for field in MANIFEST_SCHEMA}
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def entries(table: pa.Table) -> Iterator[ScanEntry]:
    """The scans of a table, row by row, without holding all of them."""
    for batch in table.select(MANIFEST_SCHEMA.names).to_batches(max_chunksize=1000):
        yield from (entry_of(row) for row in batch.to_pylist())


def entry_of(row: dict[str, Any]) -> ScanEntry:
    """One row, as `to_pylist` or Ray Data gives it; other columns are ignored."""
    values = {name: row[name] for name in MANIFEST_SCHEMA.names if name in row}
    for name in LIST_COLUMNS:
        values[name] = tuple(str(text) for text in values.get(name) or ())
    return ScanEntry(**values)


def _write(table: pa.Table, stream: Any, as_csv: bool) -> None:
    if not as_csv:
        pq.write_table(table, stream, compression="zstd", row_group_size=ROWS_PER_GROUP)
        return
    for name in LIST_COLUMNS:
        texts = [json.dumps(names, ensure_ascii=False) for names in table[name].to_pylist()]
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(texts, pa.string()))
    if (mode := (table.schema.metadata or {}).get(FINGERPRINT_MODE)) is not None:
        table = table.append_column(MODE_COLUMN, pa.array([mode.decode()] * table.num_rows, pa.string()))
    pacsv.write_csv(table, stream)


def _from_csv(stream: Any) -> pa.Table:
    data = stream.read()
    header = pacsv.read_csv(
        io.BytesIO(data.split(b"\n", 1)[0] + b"\n"), parse_options=pacsv.ParseOptions(newlines_in_values=True)
    )
    _check_columns(header.column_names)
    types = {name: pa.string() for name in header.column_names} | {
        field.name: field.type for field in MANIFEST_SCHEMA if pa.types.is_integer(field.type)
    }
    table = pacsv.read_csv(
        io.BytesIO(data),
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )
    for name in LIST_COLUMNS:
        if name in table.column_names:
            lists = [_names_in(text) for text in table[name].to_pylist()]
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, pa.array(lists, pa.list_(pa.string())))
    return _with_mode(table)


def _with_mode(table: pa.Table) -> pa.Table:
    """The column that says how fingerprints were made as metadata, where it says one thing."""
    if MODE_COLUMN not in table.column_names:
        return table
    modes = table[MODE_COLUMN].unique().to_pylist()
    table = table.drop_columns([MODE_COLUMN])
    known = len(modes) == 1 and modes[0] is not None
    return table.replace_schema_metadata({FINGERPRINT_MODE: modes[0]}) if known else table


def _names_in(text: str | None) -> list[str | None]:
    if not text:
        return []
    if not text.startswith("["):
        return [text]
    try:
        names = json.loads(text)
    except RecursionError:
        raise ValueError("brackets within brackets where a list of names was expected") from None
    if not all(name is None or isinstance(name, str) for name in names):
        raise ValueError("a list of names holds something that is no text")
    return list(names)


def _check_columns(names: list[str]) -> None:
    """Refuse a column that stands twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"column {', '.join(twice)} stands there more than once")


def _conform(table: pa.Table, path: str, folder: str) -> pa.Table:
    """Fill what may be missing, check what must be there, bring the columns to their types and order."""
    table = _without_views(table)
    try:
        _check_columns(table.column_names)
    except ValueError as error:
        raise UsageError(f"{show_name(path)} is no manifest: {error}.") from error
    missing = [name for name in ("scan_id", "files") if name not in table.column_names]
    if missing:
        raise UsageError(f"{show_name(path)} has no column {' and '.join(missing)}; a manifest needs both.")
    try:
        columns = {field.name: _column(table, field, folder) for field in MANIFEST_SCHEMA}
        conformed = pa.table(columns).cast(MANIFEST_SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise UsageError(f"{show_name(path)} is no manifest: {describe(error)}") from error
    _check_unique(conformed["scan_id"], path)
    _check_names(conformed, path)
    _check_channels(conformed, path)
    for name in table.column_names:
        if name not in MANIFEST_SCHEMA.names:
            conformed = conformed.append_column(table.schema.field(name), table[name])
    return conformed.replace_schema_metadata({**(table.schema.metadata or {}), **_read_seals(conformed["source"])})


def _read_seals(sources: pa.ChunkedArray) -> dict[bytes, bytes]:
    """What sealed sources tell of the key; in CSV nothing else does."""
    keys = {key_of_seal(text) for text in pc.unique(sources).to_pylist()}
    key = keys.pop() if len(keys) == 1 else None
    return {} if key is None else {KEY: key.encode(), PSEUDONYMISED: b"1"}


def _without_views(table: pa.Table) -> pa.Table:
    """Texts as PyArrow can take rows of them; other programs write them in a newer form."""
    for index, field in enumerate(table.schema):
        if pa.types.is_string_view(field.type):
            table = table.set_column(index, field.with_type(pa.large_string()), table[index].cast(pa.large_string()))
    return table


def _column(table: pa.Table, field: pa.Field, folder: str) -> pa.ChunkedArray:
    """One column as given, its gaps filled where it must have none."""
    given = table[field.name] if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
    if pa.types.is_null(given.type):
        given = given.cast(field.type)
    if field.name == "scan_date":
        return read_dates(given, table["scan_id"])
    if field.name == "source":
        return _absolute_sources(pc.fill_null(given, folder), folder)
    may_be_empty = field.name in ("reference_files", "channel_names")
    has_gaps = given.null_count or (may_be_empty and pc.list_flatten(given).null_count)
    if field.nullable or not has_gaps:
        return given
    if field.name == "patient_id":
        return pc.coalesce(given, table["scan_id"])
    if field.name == "num_files":
        return pc.coalesce(given.cast(pa.int32()), pc.list_value_length(table["files"]))
    if field.name == "reader":
        known = readers_by_extension()
        return pa.array(
            [known.get(extension_of(str(names[0])), "") if names else "" for names in table["files"].to_pylist()]
        )
    if may_be_empty:
        return pa.array([[name or "" for name in names or []] for names in given.to_pylist()], field.type)
    fillings: dict[str, str | int] = {"bytes": 0, "fingerprint": ""}
    if field.name not in fillings:
        raise ValueError(f"{field.name} is empty in {given.null_count} row(s)")
    return pc.fill_null(given, fillings[field.name])


def _absolute_sources(sources: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
    """Relative sources start from the manifest's folder; most manifests have one source in all rows."""
    distinct = pc.unique(sources).to_pylist()
    absolute = [
        text
        if is_sealed(text) or is_uri(text) or os.path.isabs(text) or is_uri(folder)
        else os.path.normpath(os.path.join(folder, text))
        for text in distinct
    ]
    if absolute == distinct:
        return sources
    return pc.take(pa.array(absolute, pa.string()), pc.index_in(sources, pa.array(distinct, pa.string())))


def _check_names(table: pa.Table, path: str) -> None:
    """Refuse a list of files with a gap; among references a gap is a slice without one."""
    files = table["files"].combine_chunks()
    gaps = pc.is_null(pc.list_flatten(files))
    if not pc.any(gaps).as_py():
        return
    first = pc.list_parent_indices(files).filter(gaps)[0].as_py()
    scan_id = show_name(table["scan_id"][first].as_py())
    raise UsageError(f"{show_name(path)}: scan {scan_id} has null among its files; expected the names of its slices.")


def _check_channels(table: pa.Table, path: str) -> None:
    """Refuse channels that are named twice, not at all, or for other files than there are."""
    named = table.filter(pc.greater(pc.list_value_length(table["channel_names"]), 0))
    for row in named.select(["scan_id", "reader", "files", "channel_names"]).to_pylist():
        names, num_files = row["channel_names"], len(row["files"])
        as_many = num_files % len(names) == 0 if is_series(row["reader"]) else num_files == len(names)
        if not all(names) or len(set(names)) < len(names) or not (as_many or num_files == 1):
            shown = ", ".join(show_name(name) for name in names)
            raise UsageError(
                f"{show_name(path)}: scan {show_name(row['scan_id'])} has {num_files} files for the channels {shown}; "
                "expected one file for each, in this order, or one with all of them (of DICOM as many for each), and "
                "different names."
            )


def _check_unique(scan_ids: pa.ChunkedArray, path: str) -> None:
    if pc.count_distinct(scan_ids, mode="all").as_py() == len(scan_ids):
        return
    counts = pc.value_counts(scan_ids).to_pylist()
    twice = next(item["values"] for item in counts if item["counts"] > 1)
    raise UsageError(
        f"{show_name(path)} names scan_id {show_name(str(twice))} more than once; each scan needs its own."
    )
