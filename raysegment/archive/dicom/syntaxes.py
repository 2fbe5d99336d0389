"""Transfer syntaxes: how the elements of a DICOM file and its pixels are encoded. After PS3.5, section 10."""

from __future__ import annotations

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
JPEG = "1.2.840.10008.1.2.4."

NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG)

COMPRESSED = {
    f"{JPEG}50": "JPEG baseline",
    f"{JPEG}51": "JPEG extended",
    f"{JPEG}57": "JPEG lossless",
    f"{JPEG}70": "JPEG lossless",
    f"{JPEG}80": "JPEG-LS",
    f"{JPEG}81": "JPEG-LS, near-lossless",
    f"{JPEG}90": "JPEG 2000, lossless",
    f"{JPEG}91": "JPEG 2000",
    RLE: "RLE",
}
"""Those that are decoded."""

NOT_DECODED = {
    f"{JPEG}92": "JPEG 2000, multi-component",
    f"{JPEG}93": "JPEG 2000, multi-component",
    f"{JPEG}100": "MPEG-2",
    f"{JPEG}101": "MPEG-2",
    f"{JPEG}102": "MPEG-4",
    f"{JPEG}103": "MPEG-4",
    f"{JPEG}104": "MPEG-4",
    f"{JPEG}105": "MPEG-4",
    f"{JPEG}106": "MPEG-4",
    f"{JPEG}107": "HEVC",
    f"{JPEG}108": "HEVC",
    f"{JPEG}110": "JPEG XL, lossless",
    f"{JPEG}111": "JPEG XL",
    f"{JPEG}112": "JPEG XL",
    f"{JPEG}201": "High-Throughput JPEG 2000, lossless",
    f"{JPEG}202": "High-Throughput JPEG 2000, lossless",
    f"{JPEG}203": "High-Throughput JPEG 2000",
}

LOSSY_NUMBERS = (50, 51, 81, 91, 93, 100, 101, 102, 103, 104, 105, 106, 107, 108, 111, 112, 203)
LOSSY = frozenset(f"{JPEG}{number}" for number in LOSSY_NUMBERS)
"""Those whose pixels need not be exactly what was saved."""


def describe_syntax(syntax: str) -> str:
    """A transfer syntax by the name that the standard gives it; of an unknown one nothing is quoted."""
    return COMPRESSED.get(syntax) or NOT_DECODED.get(syntax) or ("plain" if syntax in NATIVE else "unknown")
