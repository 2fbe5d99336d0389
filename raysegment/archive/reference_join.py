"""Which references belong to scans that were segmented before."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.names import show_name
from raysegment.errors import UsageError

MAX_EXAMPLES = 3


@dataclass(frozen=True)
class Joined:
    """Scans with their references.

    Attributes:
        table: Rows of the manifest, with the patients that the scans had when they were segmented.
        num_without_reference: Scans without one.
        num_without_scan: References of scans that were not segmented.
    """

    table: pa.Table
    num_without_reference: int
    num_without_scan: int


def join_references(found: pa.Table, scans: pa.Table) -> Joined:
    """Join references to scans of the same name.

    Args:
        found: A manifest of the references.
        scans: `scan_id` and `patient_id` of the segmented scans.

    Raises:
        UsageError: No scan has a reference; the message shows names of both.
    """
    has_reference = pa.array([any(files) for files in found["reference_files"].to_pylist()], pa.bool_())
    references = found.filter(has_reference)
    position = pc.index_in(references["scan_id"], value_set=scans["scan_id"].combine_chunks())
    is_known = pc.is_valid(position)
    table = references.filter(is_known)
    if not table.num_rows:
        raise UsageError(_describe_strangers(found, references, scans))
    patients = pc.take(scans["patient_id"], position.filter(is_known))
    index = table.schema.get_field_index("patient_id")
    table = table.set_column(index, table.schema.field(index), pc.coalesce(patients, table["patient_id"]))
    return Joined(table, scans.num_rows - table.num_rows, references.num_rows - table.num_rows)


def _describe_strangers(found: pa.Table, references: pa.Table, scans: pa.Table) -> str:
    if not references.num_rows:
        return (
            f"none of the {found.num_rows} scans that were found has a reference, such as {_list(found)}. If these are "
            "the references themselves, say how they are called, such as --reference '{scan}.nii.gz'."
        )
    return (
        f"none of the {references.num_rows} references is of a scan in the tables: there is {_list(references)}, and "
        f"the tables have {_list(scans)}. Give the folder that the scans were segmented from, or say what the "
        "references are called, such as --reference '{scan}_mask.tif'."
    )


def _list(table: pa.Table) -> str:
    return ", ".join(show_name(scan_id) for scan_id in table["scan_id"].slice(0, MAX_EXAMPLES).to_pylist())
