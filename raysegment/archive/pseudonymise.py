"""`--pseudonymise`: keyed hashes in the place of the user's own words, before anything is written or said."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa

from raysegment.archive.filesystem import absolute_source
from raysegment.archive.fingerprint import renew_fingerprints
from raysegment.archive.lookup import Lookup, check_key_apart
from raysegment.archive.manifest import FINGERPRINT_MODE, KEY, MANIFEST_SCHEMA, PSEUDONYMISED
from raysegment.archive.names import drop_seals, escape_name, hide_names, stem_of
from raysegment.archive.pseudonyms import Pseudonyms, default_key_file
from raysegment.archive.sealed import (
    SOURCE_KIND,
    current_key,
    hash_file,
    is_sealed,
    open_seal,
    seal_file,
    seal_source,
    use_key,
)
from raysegment.archive.zipped import MARK
from raysegment.errors import UsageError
from raysegment.options import Identifiers

Options = TypeVar("Options", bound=Any)

_GIVEN: dict[str, str] = {}
"""Sources as they were typed, and what stands for them."""

SCAN_KIND, PATIENT_KIND = "scan", "patient"


def hide_source(options: Options, name: str = "source", how: Identifiers | None = None) -> Options:
    """The options with a sealed source, where `pseudonymise` is chosen; else as they are.

    Args:
        options: Of a command; `out`, where it has one, must not hold the key file.
        name: Of the option that says where to look.
        how: What becomes of identifiers, where the options do not say it themselves.

    Raises:
        UsageError: The key cannot be read or made; or it lies in the output.
    """
    source, how = getattr(options, name), how or options
    if how.key_file or how.pseudonymise:
        check_key_apart(how.key_file or default_key_file(), getattr(options, "out", None))
    if not how.pseudonymise or source is None or is_sealed(source):
        return options
    pseudonyms = use_key(how.key_file)
    lookup = Lookup(pseudonyms)
    sealed = seal_source(absolute_source(source), pseudonyms)
    _GIVEN[source] = drop_seals(sealed)
    lookup.add([(SOURCE_KIND, _hash_of(sealed), absolute_source(source))])
    hidden = dataclasses.replace(options, **{name: sealed})
    # Of the same options it is still known which of them someone typed.
    object.__setattr__(hidden, "_typed", options.typed)
    return hidden


def recorded_identifiers(chosen: Mapping[str, Any], key_file: str | None = None) -> Identifiers:
    """What became of identifiers in a run.

    Args:
        chosen: The options that its record holds.
        key_file: Where the key lies now; where it lay then if None.
    """
    names = [item.name for item in dataclasses.fields(Identifiers)]
    known = {name: chosen[name] for name in names if chosen.get(name) is not None}
    return Identifiers(**known | ({"key_file": key_file} if key_file is not None else {}))


def hide_given(word: str) -> str:
    """A word of the command line, without the source that it may be."""
    option, equals, value = word.partition("=")
    return f"{option}{equals}{_GIVEN[value]}" if value in _GIVEN else _GIVEN.get(word, word)


def resolve_source(source: str, how: Identifiers) -> str:
    """A source that can be opened: one whose seal was dropped, as run.json has it, gets it back.

    Raises:
        UsageError: The key or the look-up table does not know it.
    """
    if not is_sealed(source):
        return source
    pseudonyms = use_key(how.key_file)
    if "~" in source:
        open_seal(source)
        return source
    name = Lookup(pseudonyms).name_of(SOURCE_KIND, _hash_of(source))
    if name is None:
        raise UsageError(
            f"what {source} stands for is not in {Lookup(pseudonyms).path}; give the --key-file beside which it is."
        )
    return seal_source(name, pseudonyms)


@contextmanager
def hidden_names(how: Identifiers) -> Iterator[None]:
    """While scans are looked for, messages have hashes where they would have names."""
    if not how.pseudonymise:
        yield
        return
    pseudonyms = use_key(how.key_file)
    with hide_names(lambda text: hash_file(text, pseudonyms)):
        yield


def pseudonymise_table(table: pa.Table) -> pa.Table:
    """A manifest with keyed hashes in the place of scan_ids, patients and paths; what they stand for is looked up
    beside the key. Columns that are not raysegment's own and hold texts are left out.

    Args:
        table: As it was found; one that is pseudonymised already is given back.

    Raises:
        UsageError: It has pseudonyms of another key; or the look-up table cannot be written.
    """
    pseudonyms = current_key()
    metadata = table.schema.metadata or {}
    if PSEUDONYMISED in metadata:
        if metadata.get(KEY) != pseudonyms.fingerprint.encode():
            raise UsageError(
                f"the manifest has pseudonyms of the key {metadata[KEY].decode()}; this one is "
                f"{pseudonyms.fingerprint}. Give the --key-file that it was made with."
            )
        return table
    columns, rows = _rename(table, pseudonyms)
    Lookup(pseudonyms).add(rows)
    table = _drop_foreign_texts(table)
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))
    noted = {**_hide_metadata(metadata, pseudonyms), KEY: pseudonyms.fingerprint, PSEUDONYMISED: b"1"}
    table = table.replace_schema_metadata(noted)
    return renew_fingerprints(table, metadata.get(FINGERPRINT_MODE, b"stat").decode())


def is_pseudonymised(table: pa.Table) -> bool:
    """Whether keyed hashes stand for a manifest's scans, patients and paths."""
    return PSEUDONYMISED in (table.schema.metadata or {})


def real_names(table: pa.Table) -> dict[str, str]:
    """The patient's pseudonym by what the user calls a patient, a scan or a scan's file; empty where a manifest has no
    pseudonyms.

    Raises:
        UsageError: The look-up table cannot be read.
    """
    if not is_pseudonymised(table):
        return {}
    patient_of = dict(zip(table["scan_id"].to_pylist(), table["patient_id"].to_pylist(), strict=True))
    patients = set(patient_of.values())
    stems: dict[str, str | None] = {}
    names: dict[str, str] = {}
    for kind, pseudonym, name in Lookup(current_key()).read():
        if kind == SCAN_KIND and pseudonym in patient_of:
            patient, stem = patient_of[pseudonym], stem_of(name)
            stems[stem] = patient if stems.get(stem, patient) == patient else None
            names.setdefault(name, patient)
        if kind == PATIENT_KIND and pseudonym in patients:
            names[name] = pseudonym
    return {stem: patient for stem, patient in stems.items() if patient is not None} | names


def hide_word(text: str) -> str:
    """What stands in the place of a patient whom the user names."""
    return current_key().hash(PATIENT_KIND, text)


def _rename(table: pa.Table, pseudonyms: Pseudonyms) -> tuple[dict[str, list[Any]], set[tuple[str, str, str]]]:
    """Columns as they will be, and lines of the look-up table."""
    rows: set[tuple[str, str, str]] = set()
    columns: dict[str, list[Any]] = {}
    for column, kind in (("scan_id", SCAN_KIND), ("patient_id", PATIENT_KIND)):
        names = table[column].to_pylist()
        columns[column] = [pseudonyms.hash(kind, name) for name in names]
        rows |= {(kind, pseudonym, name) for pseudonym, name in zip(columns[column], names, strict=True)}
    sources = {
        name: name if is_sealed(name) else seal_source(name, pseudonyms) for name in set(table["source"].to_pylist())
    }
    rows |= {(SOURCE_KIND, _hash_of(sealed), open_seal(sealed)) for sealed in sources.values()}
    columns["source"] = [sources[name] for name in table["source"].to_pylist()]
    for column in ("files", "reference_files"):
        columns[column] = [
            [seal_file(name, pseudonyms) if name else "" for name in names] for names in table[column].to_pylist()
        ]
    # As they would be hashed from the sealed names; what is out of reach keeps a hash that only the key's holder knows.
    columns["fingerprint"] = [pseudonyms.hash("fingerprint", text, 64) for text in table["fingerprint"].to_pylist()]
    columns["problem"] = _hide_problems(table, pseudonyms)
    return columns, rows


def _hide_problems(table: pa.Table, pseudonyms: Pseudonyms) -> list[str | None]:
    """Problems without the names of a scan's files, as processes that do not hide names may have said them."""
    problems = table["problem"].to_pylist()
    for position, (problem, scan_id) in enumerate(zip(problems, table["scan_id"].to_pylist(), strict=True)):
        if problem is None:
            continue
        names = [name for column in ("files", "reference_files") for name in table[column][position].as_py() if name]
        problems[position] = drop_seals(_hide_in(problem, {scan_id, *names, *_find_zips(names)}, pseudonyms))
    return problems


def _hide_in(text: str, names: Iterable[str], pseudonyms: Pseudonyms) -> str:
    """A text with hashes in the place of names, as they are or as messages show them."""
    name_of = {form: name for name in names for form in (name, escape_name(name), escape_name(drop_seals(name)))}
    # At one place the longest; what stands in the place of one name is not searched for others.
    wanted = "|".join(re.escape(form) for form in sorted(name_of, key=len, reverse=True))
    return re.sub(wanted, lambda found: hash_file(name_of[found[0]], pseudonyms), text)


def _find_zips(names: Iterable[str]) -> set[str]:
    """The zips, or folders that are called so, in which files lie."""
    return {name[: found.end() - 1] for name in names for found in re.finditer(re.escape(MARK), name, re.IGNORECASE)}


def _drop_foreign_texts(table: pa.Table) -> pa.Table:
    """Without columns of which nobody knows what names they hold."""
    harmless = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_date)
    kept = [
        field.name
        for field in table.schema
        if field.name in MANIFEST_SCHEMA.names or any(check(field.type) for check in harmless)
    ]
    return table.select(kept)


def _hide_metadata(metadata: Mapping[bytes, bytes], pseudonyms: Pseudonyms) -> dict[bytes, bytes]:
    found = dict(metadata)
    if (without := found.get(b"raysegment.scans_without_date")) is not None:
        first, count = json.loads(without)
        found[b"raysegment.scans_without_date"] = json.dumps([pseudonyms.hash(SCAN_KIND, first), count]).encode()
    return found


def _hash_of(sealed: str) -> str:
    return drop_seals(sealed).rpartition("/")[2].partition(".")[0]
