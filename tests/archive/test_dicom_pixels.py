"""Pixels of DICOM files in every encoding: as pydicom and NumPy have them, and the same ones however compressed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_made import AXIAL, change, compress, make_enhanced, make_instance, make_series, to_bytes, write_series
from pydicom.pixels import apply_color_lut, apply_modality_lut, convert_color_space
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless
from volumes_made import entry_of_files

from raysegment.archive.dicom.header import parse_instance
from raysegment.archive.dicom.library import quiet_libraries
from raysegment.archive.dicom.pixels import read_frames
from raysegment.archive.formats import dicom
from raysegment.archive.read import read_scan, read_volume
from raysegment.errors import OversizedScanError, ScanError, TruncatedFileError, UnreadableFileError

JPEG = "1.2.840.10008.1.2.4."
RANDOM = np.random.default_rng(0)
ROWS, COLUMNS = 40, 48
SMOOTH = (np.add.outer(np.arange(ROWS) ** 2, np.arange(COLUMNS) * 17) % 4096).astype(np.uint16)
COLOURS = np.stack([SMOOTH // 17, SMOOTH.T[:ROWS, :1] // 16 + SMOOTH // 40, 255 - SMOOTH // 17], -1).astype(np.uint8)


def read(made):
    """All frames of a file."""
    data = made if isinstance(made, bytes) else to_bytes(made)
    return read_frames(data, parse_instance(data, "a.dcm"), "a.dcm")


STORED = [
    ("uint8", SMOOTH.astype(np.uint8), {}),
    ("int8", SMOOTH.astype(np.int8), {}),
    ("uint16", SMOOTH * 16, {}),
    ("int16", SMOOTH.astype(np.int16) - 2000, {}),
    ("uint32", SMOOTH.astype(np.uint32) * 999_999, {}),
    ("twelve bits", SMOOTH, {"BitsStored": 12, "HighBit": 11}),
    ("twelve bits, signed", SMOOTH.astype(np.int16) - 2048, {"BitsStored": 12, "HighBit": 11}),
    ("odd number of bytes", SMOOTH[:5, :7].astype(np.uint8), {}),
]


@pytest.mark.parametrize(("pixels", "values"), [case[1:] for case in STORED], ids=[case[0] for case in STORED])
def test_numbers_are_read_as_they_are_stored(pixels, values):
    found = read(make_instance(pixels, **values))
    assert found.dtype == pixels.dtype
    assert np.array_equal(found[0, ..., 0], pixels)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4"])
def test_big_endian_and_deflated_files_hold_the_same_numbers(dtype):
    made = make_instance(SMOOTH.astype(dtype))
    big = change(make_instance(SMOOTH.astype(dtype)), PixelData=SMOOTH.astype(dtype).byteswap().tobytes())
    big["PixelData"].VR = "OB" if dtype == "u1" else "OW"
    big.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    deflated = change(make_instance(SMOOTH.astype(dtype)))
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    for other in (big, deflated):
        assert np.array_equal(read(other), read(made))


def test_bytes_in_big_endian_words_are_swapped_back():
    made = make_instance(SMOOTH.astype(np.uint8))
    made.PixelData = SMOOTH.astype(np.uint8).reshape(-1, 2)[:, ::-1].tobytes()
    made["PixelData"].VR = "OW"
    made.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    assert np.array_equal(read(made)[0, ..., 0], SMOOTH.astype(np.uint8))


def test_a_deflated_file_that_unpacks_without_end_is_refused():
    made = make_instance(SMOOTH)
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = to_bytes(made)
    start = data.index(b"1.2.840.10008.1.2.1.99") + 22
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(b"\x09\0\x01\x10UN\0\0" + (2**26).to_bytes(4, "little") + bytes(2**26)) + packer.flush()
    with pytest.raises((TruncatedFileError, OversizedScanError, UnreadableFileError)):
        read(data[:start] + bomb)


def test_what_lies_in_unused_bits_is_left_out():
    noise = RANDOM.integers(0, 16, SMOOTH.shape).astype(np.uint16)
    low = make_instance(SMOOTH | noise << 12, BitsStored=12, HighBit=11)
    high = make_instance(SMOOTH << 4 | noise, BitsStored=12, HighBit=15)
    signed = make_instance(((SMOOTH & 0xFFF) | noise << 12).astype(np.int16), BitsStored=12, HighBit=11)
    assert np.array_equal(read(low)[0, ..., 0], SMOOTH)
    assert np.array_equal(read(high)[0, ..., 0], SMOOTH)
    assert np.array_equal(read(signed)[0, ..., 0], np.where(SMOOTH > 2047, SMOOTH.astype(int) - 4096, SMOOTH))


def test_monochrome_1_is_inverted_within_its_bits():
    made = make_instance(SMOOTH, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    assert np.array_equal(read(made)[0, ..., 0], 4095 - SMOOTH)
    signed = make_instance(SMOOTH.astype(np.int16) - 2048, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read(signed)[0, ..., 0], -1 - (SMOOTH.astype(int) - 2048))


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept"),
    [("u2", 1, -1024), ("u1", -1, 0), ("i2", 3, 7), ("u2", 0.25, -3), ("i2", 1.7, 0.1), ("u1", -200, 100)],
)
def test_slope_and_intercept_are_those_of_pydicom(dtype, slope, intercept):
    made = make_instance(SMOOTH.astype(dtype), RescaleSlope=str(slope), RescaleIntercept=str(intercept))
    found = read(made)[0, ..., 0]
    expected = SMOOTH.astype(dtype).astype(np.float64) * slope + intercept
    assert found.dtype.kind == ("i" if float(slope).is_integer() and float(intercept).is_integer() else "f")
    assert np.allclose(found, expected, rtol=1e-7)
    assert np.allclose(expected, apply_modality_lut(made.pixel_array, made))


def test_a_table_of_shades_is_applied_as_pydicom_does():
    table = pydicom.Dataset()
    table.add_new(0x00283002, "US", [1000, 500, 16])
    table.add_new(0x00283003, "LO", "")
    table.add_new(0x00283004, "LO", "US")
    table.add_new(0x00283006, "OW", (np.arange(1000) * 37 % 9999).astype("<u2").tobytes())
    made = make_instance(SMOOTH, ModalityLUTSequence=pydicom.Sequence([table]))
    data = to_bytes(made)
    expected = apply_modality_lut(SMOOTH, pydicom.dcmread(pydicom.filebase.DicomBytesIO(data)))
    assert np.array_equal(read(data)[0, ..., 0], expected)


def test_a_table_of_shades_may_begin_below_zero():
    table = pydicom.Dataset()
    table.add_new(0x00283002, "SS", [4, -2, 16])
    table.add_new(0x00283003, "LO", "")
    table.add_new(0x00283004, "LO", "US")
    table.add_new(0x00283006, "OW", np.array([10, 20, 30, 40], "<u2").tobytes())
    stored = np.array([[-3, -2, -1, 0, 1, 2]], np.int16)
    found = read(make_instance(stored, ModalityLUTSequence=pydicom.Sequence([table])))
    assert found[0, ..., 0].tolist() == [[10, 10, 20, 30, 40, 40]]


@pytest.mark.parametrize("bits", [8, 16])
def test_numbers_of_colours_become_colours_as_pydicom_makes_them(bits):
    names = ("Red", "Green", "Blue")
    made = make_instance(SMOOTH.astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for index, name in enumerate(names):
        entries = (RANDOM.permutation(256) * (1 if bits == 8 else 257)).astype("<u2")
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, bits])
        stored = entries.astype(np.uint8) if bits == 8 and index != 1 else entries
        setattr(made, f"{name}PaletteColorLookupTableData", stored.tobytes())
    found = read(made)[0]
    if bits == 16:
        assert np.array_equal(found, apply_color_lut(made.pixel_array, made))
    assert found.shape == (ROWS, COLUMNS, 3)
    assert found.dtype == (np.uint8 if bits == 8 else np.uint16)


def test_colours_may_lie_in_planes_and_in_ybr():
    planar = make_instance(COLOURS, PlanarConfiguration=1)
    planar.PixelData = COLOURS.transpose(2, 0, 1).tobytes()
    ybr = make_instance(COLOURS, PhotometricInterpretation="YBR_FULL")
    assert np.array_equal(read(make_instance(COLOURS))[0], COLOURS)
    assert np.array_equal(read(planar)[0], COLOURS)
    assert np.array_equal(read(ybr)[0], convert_color_space(COLOURS, "YBR_FULL", "RGB"))
    half = make_instance(np.full((4, 6, 3), 128, np.uint8), PhotometricInterpretation="YBR_FULL_422")
    half.PixelData = b"\x50\x60\x80\x80" * 12
    assert np.array_equal(read(half)[0, 0, :2], [[80] * 3, [96] * 3])


@pytest.mark.parametrize("meaning", ["YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("dtype", ["u2", "i1"])
def test_ybr_of_other_than_plain_bytes_is_refused_by_its_header(meaning, dtype):
    data = to_bytes(make_instance(COLOURS.astype(dtype), PhotometricInterpretation=meaning))
    with pytest.raises(UnreadableFileError, match=f"declares {meaning} of (16|8) bits.*expected 8 without a sign"):
        parse_instance(data, "a.dcm")


def test_single_bits_and_floats_are_read():
    bits = RANDOM.integers(0, 2, (3, 5, 7)).astype(np.uint8)
    made = make_instance(bits, BitsAllocated=1, BitsStored=1, HighBit=0)
    made.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes()
    assert np.array_equal(read(made)[..., 0], bits)
    floats = RANDOM.normal(size=(6, 7)).astype(np.float32)
    made = change(make_instance(np.zeros((6, 7), np.uint32)), PixelData=None, BitsStored=None, HighBit=None)
    made.FloatPixelData = floats.tobytes()
    assert np.array_equal(read(made)[0, ..., 0], floats)


def encode_with_gdcm(pixels: np.ndarray, syntax: str, folder: Path) -> bytes:
    """One frame, compressed by gdcm from file to file."""
    import gdcm

    (folder / "plain.dcm").write_bytes(to_bytes(make_instance(pixels)))
    reader, change_syntax, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(folder / "plain.dcm"))
    assert reader.Read()
    change_syntax.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change_syntax.SetInput(reader.GetImage())
    assert change_syntax.Change()
    writer.SetFileName(str(folder / "packed.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change_syntax.GetOutput())
    assert writer.Write()
    packed = pydicom.dcmread(folder / "packed.dcm")
    return next(pydicom.encaps.generate_frames(packed.PixelData, number_of_frames=1))


def encode(pixels: np.ndarray, how: str, folder: Path) -> tuple[str, bytes]:
    """Transfer syntax and one compressed frame."""
    if how == "RLE":
        made = make_instance(pixels)
        made.compress(RLELossless)
        return str(RLELossless), next(pydicom.encaps.generate_frames(made.PixelData, number_of_frames=1))
    if how == "JPEG-LS":
        return f"{JPEG}80", imagecodecs.jpegls_encode(pixels)
    if how == "JPEG 2000":
        return f"{JPEG}90", imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0)
    if how == "JPEG lossless, any predictor":
        return f"{JPEG}57", encode_with_gdcm(pixels, f"{JPEG}57", folder)
    if how == "JPEG lossless":
        return f"{JPEG}70", encode_with_gdcm(pixels, f"{JPEG}70", folder)
    raise ValueError(how)


LOSSLESS = ("RLE", "JPEG-LS", "JPEG 2000", "JPEG lossless, any predictor", "JPEG lossless")


@pytest.mark.parametrize("how", LOSSLESS)
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2"])
def test_a_compressed_copy_has_the_same_pixels(how, dtype, tmp_path):
    pixels = (SMOOTH * 3).astype(dtype)
    made = make_instance(pixels, RescaleSlope="2", RescaleIntercept="-5")
    if dtype == "i2" and how in ("JPEG-LS", "JPEG 2000"):
        syntax, frame = encode(pixels.view(np.uint16), how, tmp_path)
        pixels = pixels.view(np.uint16).view(np.int16)
    else:
        syntax, frame = encode(pixels, how, tmp_path)
    copy = compress(made, syntax, [frame])
    assert np.array_equal(read(copy), read(made))
    assert not parse_instance(to_bytes(copy), "a").was_lossy


@pytest.mark.parametrize("how", ["RLE", "JPEG-LS", "JPEG 2000", "JPEG lossless"])
def test_frames_are_compressed_one_by_one(how, tmp_path):
    volume = np.stack([SMOOTH, SMOOTH[::-1], SMOOTH // 2])
    made = make_enhanced(volume, order=[2, 0, 1])
    encoded = [encode(np.ascontiguousarray(volume[index]), how, tmp_path) for index in (2, 0, 1)]
    copy = compress(made, encoded[0][0], [frame for _, frame in encoded])
    assert np.array_equal(dicom.read_slices(to_bytes(copy), "a").pixels[..., 0], volume)


LOSSY = {
    "JPEG baseline": (f"{JPEG}50", lambda pixels: imagecodecs.jpeg8_encode(pixels, level=95), 6),
    "JPEG of 12 bits": (f"{JPEG}51", lambda pixels: imagecodecs.jpeg8_encode(pixels, 95, bitspersample=12), 60),
    "JPEG-LS, near": (f"{JPEG}81", lambda pixels: imagecodecs.jpegls_encode(pixels, level=3), 3),
    "JPEG 2000": (
        f"{JPEG}91",
        lambda pixels: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=False, level=90),
        20,
    ),
}


@pytest.mark.parametrize("how", LOSSY)
def test_a_lossy_copy_is_as_near_as_its_error_and_says_so(how, tmp_path):
    syntax, encoder, error = LOSSY[how]
    ramp = (np.add.outer(np.arange(ROWS), np.arange(COLUMNS)) * (2 if how == "JPEG baseline" else 40)).astype(
        np.uint8 if how == "JPEG baseline" else np.uint16
    )
    made = make_instance(ramp) if ramp.itemsize == 1 else make_instance(ramp, BitsStored=12, HighBit=11)
    copy = compress(made, syntax, [encoder(ramp)])
    assert np.abs(read(copy).astype(int)[0, ..., 0] - ramp).max() <= error
    (tmp_path / "a.dcm").write_bytes(to_bytes(copy))
    assert read_volume(str(tmp_path), "dicom", ("a.dcm",), 2**30)[1]
    with (tmp_path / "a.dcm").open("rb") as stream:
        assert dicom.read_header(stream, "a.dcm").is_lossy


@pytest.mark.parametrize("meaning", ["YBR_FULL", "YBR_FULL_422", "RGB", "YBR_RCT", "YBR_ICT"])
def test_compressed_colours_come_as_red_green_and_blue(meaning):
    ramp = np.add.outer(np.arange(ROWS), np.arange(COLUMNS))
    colours = np.stack([ramp * 2, 200 - ramp, ramp + 50], -1).astype(np.uint8)
    if meaning in ("YBR_RCT", "YBR_ICT"):
        is_exact = meaning == "YBR_RCT"
        frame = imagecodecs.jpeg2k_encode(
            colours, codecformat="j2k", colorspace="SRGB", reversible=is_exact, level=0 if is_exact else 50, mct=True
        )
        syntax = f"{JPEG}90" if is_exact else f"{JPEG}91"
    else:
        inside = "rgb" if meaning == "RGB" else "ycbcr"
        subsampling = "422" if meaning == "YBR_FULL_422" else "444"
        frame = imagecodecs.jpeg8_encode(
            colours, level=95, colorspace="rgb", outcolorspace=inside, subsampling=subsampling
        )
        syntax = f"{JPEG}50"
    copy = compress(make_instance(colours), syntax, [frame], PhotometricInterpretation=meaning)
    assert np.abs(read(copy)[0].astype(int) - colours).max() <= 8


def test_compressed_pixels_that_are_no_such_are_refused():
    pixels = SMOOTH
    made = make_instance(pixels)
    wrong_size = compress(make_instance(pixels[:, :40]), f"{JPEG}80", [imagecodecs.jpegls_encode(pixels)])
    with pytest.raises(UnreadableFileError, match="its compressed picture is 40 x 48"):
        read(wrong_size)
    wrong_syntax = compress(made, f"{JPEG}90", [imagecodecs.jpegls_encode(pixels)])
    with pytest.raises(UnreadableFileError, match="cannot be decoded"):
        read(wrong_syntax)
    with pytest.raises(UnreadableFileError, match=r"RLE.*cannot be decoded"):
        read(compress(made, str(RLELossless), [b"\0" * 64]))
    with pytest.raises(UnreadableFileError, match="compressed by MPEG-4, not read"):
        read(compress(made, f"{JPEG}102", [b"\0" * 64]))
    with pytest.raises(UnreadableFileError, match="that is not known"):
        read(to_bytes(wrong_syntax).replace(f"{JPEG}90".encode(), f"{JPEG}99".encode()))


def test_compressed_pixels_that_end_too_soon_are_refused():
    syntax, frame = f"{JPEG}80", imagecodecs.jpegls_encode(SMOOTH)
    data = to_bytes(compress(make_instance(SMOOTH), syntax, [frame]))
    for cut in (4, 12, 300):
        with pytest.raises(TruncatedFileError):
            read(data[:-cut])
    few = compress(make_instance(np.stack([SMOOTH] * 3)), syntax, [frame, frame])
    with pytest.raises((TruncatedFileError, UnreadableFileError)):
        read(few)


@pytest.mark.skipif("RAYSEGMENT_DATA" not in os.environ, reason="needs RAYSEGMENT_DATA with real scans")
@pytest.mark.parametrize("how", LOSSLESS)
def test_compressed_copies_of_real_series_are_the_same_scans(how, tmp_path):
    for name in ("ct-3slice", "mr-study/26401-T1prereg-52906"):
        source = Path(os.environ["RAYSEGMENT_DATA"], "dicom", name)
        files = sorted(path.name for path in source.iterdir())[:4]
        folder = tmp_path / source.name
        folder.mkdir()
        for file in files:
            made = pydicom.dcmread(source / file)
            if how in ("JPEG-LS", "JPEG 2000") and made.PixelRepresentation:
                syntax, frame = encode(made.pixel_array.view(np.uint16), how, tmp_path)
            else:
                syntax, frame = encode(made.pixel_array, how, tmp_path)
            (folder / file).write_bytes(to_bytes(compress(made, syntax, [frame])))
        for file in files:
            ours, original = (read((place / file).read_bytes()) for place in (folder, source))
            assert np.array_equal(ours, original)


def test_files_that_pydicom_brings_with_it_are_read_as_pydicom_reads_them():
    """Odd ones of many makers: all encodings, wrong signs, paddings, tables, sequences without length."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    num_same, refused = 0, set()
    for path in sorted(folder.glob("*.dcm")):
        # Secondary captures are left alone in archives; here their pixels are as good as others.
        data = path.read_bytes().replace(b"1.2.840.10008.5.1.4.1.1.7\0", b"1.2.840.10008.5.1.4.1.1.2\0")
        if not dicom.recognises(data[:512]) or path.name in TWELVE_BITS:
            continue
        try:
            instance = parse_instance(data, path.name)
            if instance.kind != "image" or instance.pixels.photometric == "MONOCHROME1":
                continue
            ours = read_frames(data, instance, path.name)
        except ScanError:
            refused.add(path.name)
            continue
        with quiet_libraries():
            made = pydicom.dcmread(io.BytesIO(data))
            theirs = pydicom.pixels.pixel_array(made)
        if instance.pixels.palette:
            theirs = apply_color_lut(theirs, made)
        elif instance.channels == 1:
            theirs = apply_modality_lut(theirs, made)
        assert np.allclose(ours, theirs.reshape(ours.shape), rtol=1e-6), path.name
        num_same += 1
    assert refused <= UNREADABLE
    assert num_same >= 45


TWELVE_BITS = {"JPEG-lossy.dcm", "JPGExtended.dcm"}
"""JPEG that pydicom's decoders do not read."""

UNREADABLE = {
    "JPEG2000-embedded-sequence-delimiter.dcm",
    "SC_rgb_rle_32bit.dcm",
    "SC_rgb_rle_32bit_2frame.dcm",
    "MR_truncated.dcm",
    "UN_sequence.dcm",
    "empty_charset_LEI.dcm",
    "meta_missing_tsyntax.dcm",
    "no_meta.dcm",
    "no_meta_group_length.dcm",
    "priv_SQ.dcm",
    "rtplan_truncated.dcm",
}
"""Cut and damaged ones, those without pixels or encoding, colours of 32 bits."""

NOISE = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from raysegment.archive.read import read_scan
from raysegment.errors import ScanError
from raysegment.scan import ScanEntry
for name in sys.argv[2:]:
    entry = ScanEntry(scan_id="s", patient_id="p", source=sys.argv[1], reader="dicom", files=(name,))
    try:
        read_scan(entry)
        print("read")
    except ScanError as error:
        print(error)
"""


def test_nothing_of_a_header_reaches_the_process_that_reads_it(tmp_path):
    """Values that make libraries warn and fail, also with logs of all levels switched on."""
    secret = "SECRET^PLANTED"
    with pydicom.config.disable_value_validation():
        good = make_instance(SMOOTH, PatientName=secret, PatientID=secret, StudyDate=secret, PatientComments=secret)
        good.add_new(0x00091001, "LO", secret)
        syntax, frame = f"{JPEG}80", imagecodecs.jpegls_encode(SMOOTH)
        bad = {
            "compressed.dcm": compress(good, syntax, [frame]),
            "damaged.dcm": compress(good, syntax, [frame[:50] + secret.encode() + frame[70:]]),
            "syntax.dcm": compress(good, f"{JPEG}90", [secret.encode() * 9]),
            "rle.dcm": compress(good, str(RLELossless), [secret.encode() * 9]),
            "meaning.dcm": make_instance(SMOOTH, PhotometricInterpretation=secret, PatientID=secret),
            "position.dcm": make_series(SMOOTH[None], AXIAL, PatientID=secret, ImageType=[secret])[0],
        }
        names = write_series(tmp_path, list(bad.values()), names=list(bad))
    done = subprocess.run(
        [sys.executable, "-c", NOISE, str(tmp_path), *names], capture_output=True, text=True, check=True
    )
    assert "SECRET" not in done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.count("read\n") == 2
    assert len(done.stdout.splitlines()) == 6


def test_a_scan_of_nan_is_refused(tmp_path):
    made = change(make_instance(np.zeros((6, 7), np.uint32)), PixelData=None, BitsStored=None, HighBit=None)
    made.FloatPixelData = np.full((6, 7), np.nan, np.float32).tobytes()
    (tmp_path / "a.dcm").write_bytes(to_bytes(made))
    entry = entry_of_files(tmp_path, "a.dcm")
    with pytest.raises(Exception, match="42 values that are NaN"):
        read_scan(type(entry)(**{**entry.__dict__, "reader": "dicom"}))
