"""DICOM files written by hand, with known values."""

import io
import struct

import numpy as np
import pytest

pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

from simmim.data.formats.decode import UnreadableError, decode, inspect

RNG = np.random.default_rng(5)
TWELVE = RNG.integers(0, 4096, (30, 40), dtype=np.uint16)


def dicom(array: np.ndarray, syntax: str = ExplicitVRLittleEndian, **values: object) -> bytes:
    data = Dataset()
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.SOPInstanceUID = "1.2.3"
    data.Modality = "OT"
    data.Rows, data.Columns = array.shape[:2]
    data.SamplesPerPixel = 1 if array.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2" if array.ndim == 2 else "RGB"
    if array.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = 8 * array.itemsize
    data.BitsStored = values.pop("BitsStored", 8 * array.itemsize)
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(array.dtype.kind == "i")
    coded = values.pop("coded", None)
    for name, value in values.items():
        setattr(data, name, value)
    data.PixelData = encapsulate([coded]) if coded else array.tobytes()
    data["PixelData"].VR = "OB" if coded or array.itemsize == 1 else "OW"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def check(data: bytes, expected: np.ndarray) -> None:
    opened, array = inspect(data), decode(data)
    assert opened.format == "DICOM"
    assert (opened.height, opened.width, opened.channels) == array.shape
    assert opened.dtype == array.dtype == expected.dtype
    assert np.array_equal(array, expected if expected.ndim == 3 else expected[..., None])


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]
)
def test_plain_values_stay_integers_of_their_depth(syntax: str):
    check(dicom(TWELVE, syntax, BitsStored=12), TWELVE)
    eight = (TWELVE >> 4).astype(np.uint8)
    check(dicom(eight, syntax), eight)
    color = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    check(dicom(color, syntax), color)


def test_low_values_are_bright_in_monochrome_1():
    invert = {"PhotometricInterpretation": "MONOCHROME1"}
    check(dicom(TWELVE, BitsStored=12, **invert), 4095 - TWELVE)
    signed = RNG.integers(-2048, 2048, (30, 40), dtype=np.int16)
    check(dicom(signed, BitsStored=12, **invert), (-1 - signed).astype(np.float32))


def test_signed_and_rescaled_values_come_in_their_units():
    signed = RNG.integers(-2048, 2048, (30, 40), dtype=np.int16)
    check(dicom(signed, BitsStored=12), signed.astype(np.float32))
    scaled = {"RescaleSlope": "2", "RescaleIntercept": "-1024"}
    check(dicom(TWELVE, BitsStored=12, **scaled), (TWELVE * 2.0 - 1024).astype(np.float32))


def test_bits_that_are_not_in_use_are_no_values():
    overlaid = TWELVE | np.uint16(0x8000)
    check(dicom(overlaid, BitsStored=12), TWELVE)


def test_a_palette_is_expanded():
    table = RNG.integers(0, 256, (3, 256), dtype=np.uint8)
    index = RNG.integers(0, 256, (30, 40), dtype=np.uint8)
    palette: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in zip(("Red", "Green", "Blue"), table, strict=True):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        palette[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    check(dicom(index, **palette), table.T[index])


def test_of_several_frames_the_first_is_read():
    frames = RNG.integers(0, 256, (2, 30, 40), dtype=np.uint8)
    data = dicom(frames[0], NumberOfFrames=2)
    at = data.rfind(frames[0].tobytes())
    data = data[: at - 4] + struct.pack("<I", 2 * 1200) + frames.tobytes()
    check(data, frames[0])
    assert inspect(data).left_out == "2 frames: only the first is used"


def rle(array: np.ndarray) -> bytes:
    """Byte planes, high first, as literal runs."""
    planes = array.astype(">u2").view(np.uint8).reshape(*array.shape, 2)
    segments = []
    for plane in (planes[..., 0], planes[..., 1]):
        out = b"".join(bytes([len(row) - 1]) + row.tobytes() for row in plane)
        segments.append(out + b"\0" * (len(out) % 2))
    offsets = [64, 64 + len(segments[0])]
    return struct.pack("<16I", 2, *offsets, *[0] * 13) + b"".join(segments)


def test_coded_frames():
    check(dicom(TWELVE, RLELossless, BitsStored=12, coded=rle(TWELVE)), TWELVE)
    codecs = pytest.importorskip("imagecodecs")
    coded = codecs.jpeg2k_encode(TWELVE, level=0, codecformat="j2k", bitspersample=12)
    check(dicom(TWELVE, JPEG2000Lossless, BitsStored=12, coded=coded), TWELVE)
    pytest.importorskip("gdcm")
    coded = codecs.ljpeg_encode(TWELVE, bitspersample=12)
    check(dicom(TWELVE, JPEGLosslessSV1, BitsStored=12, coded=coded), TWELVE)


def test_a_file_without_preamble_is_recognised_too():
    data = dicom(TWELVE, ImplicitVRLittleEndian, BitsStored=12)
    length = struct.unpack_from("<I", data, 140)[0]
    check(data[144 + length :], TWELVE)


def test_the_preamble_may_look_like_a_tiff():
    data = dicom(TWELVE, BitsStored=12)
    check(b"II*\0\x08\0\0\0" + data[8:], TWELVE)


def test_what_holds_no_image_or_too_large_a_frame_is_refused(monkeypatch: pytest.MonkeyPatch):
    codecs = pytest.importorskip("imagecodecs")
    large = codecs.jpeg2k_encode(np.zeros((64, 64), np.uint16), level=0, codecformat="j2k")
    with pytest.raises(UnreadableError, match="64×64 pixels in an image of 30×40"):
        decode(dicom(TWELVE, JPEG2000Lossless, coded=large))
    with pytest.raises(UnreadableError, match="without an image"):
        decode(dicom(TWELVE)[:330])
    with pytest.raises(UnreadableError):
        decode(dicom(TWELVE)[:-100])
    monkeypatch.setattr("simmim.data.formats.dicom.find_spec", lambda name: None)
    with pytest.raises(UnreadableError, match=r"simmim\[dicom\]"):
        decode(dicom(TWELVE))
