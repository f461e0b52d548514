"""DICOM by pydicom: the first frame, in the units of its modality where these differ."""

import io
import struct
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from simmim.data.formats.image_file import ImageFile, UnreadableError
from simmim.data.formats.jpeg import FRAMES, segments_of

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT")
DEFLATED = "1.2.840.10008.1.2.1.99"
INFLATED = 1 << 30
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
SIZED = FRAMES | {0xF7}
"""Markers of JPEG and JPEG-LS that are followed by the size of the picture."""

FIRST = (b"\0\0", b"\x05\0", b"\x08\0", b"\x12\0", b"\x16\0", b"\x18\0")
"""Numbers of a first element, such that no TGA file, which has no mark either, begins alike."""


def is_dicom(data: bytes) -> bool:
    """Tell a file with a preamble, or one that begins with an element of group 2 or 8."""
    if data[128:132] == b"DICM":
        return True
    return data[:2] in (b"\x02\0", b"\x08\0") and data[2:4] in FIRST


def open_dicom(data: bytes) -> ImageFile:
    """Read the header.

    Unsigned values that are not rescaled stay integers of 8 or 16 bits; rescaled and signed ones
    become float, in units such as Hounsfield's. MONOCHROME1, in which low values are bright, is
    inverted. No window (VOI LUT) is applied: all of the range is kept.

    Raises:
        UnreadableError: pydicom is not installed, or there are no pixels of a known kind.
        Exception: Whatever pydicom raises on a damaged file.
    """
    if find_spec("pydicom") is None:
        raise UnreadableError("a DICOM file: pip install 'simmim[dicom]'")
    import pydicom

    _check_inflated(data)
    header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, force=True)
    if "Rows" not in header or "Columns" not in header:
        raise UnreadableError(f"a DICOM file without an image ({header.get('Modality', '?')})")
    kind = _kind(header)

    def read(_shrink: int) -> np.ndarray:
        return kind.finish(_stored(data))

    frames = int(header.get("NumberOfFrames") or 1)
    return ImageFile(
        *("DICOM", int(header.Rows), int(header.Columns), kind.channels, kind.dtype, read),
        left_out=f"{frames:,} frames: only the first is used" if frames > 1 else "",
    )


@dataclass(frozen=True)
class _Kind:
    """How stored values become pixels."""

    channels: int
    dtype: str
    photometric: str
    bits: int
    signed: bool
    slope: float
    intercept: float
    header: Any

    def finish(self, stored: np.ndarray) -> np.ndarray:
        """Return (h, w, C) from what is stored, (h, w) or (h, w, 3)."""
        if self.photometric == "PALETTE COLOR":
            from pydicom.pixels import apply_color_lut

            return apply_color_lut(stored, self.header).astype(self.dtype)
        stored = stored[..., None] if stored.ndim == 2 else stored
        if stored.dtype.kind == "f":
            return stored.astype(np.float32)
        if self.bits == 1:
            return (stored > 0) != (self.photometric == "MONOCHROME1")
        low, high = (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.signed else (0, -1)
        if self.dtype != "float32":
            high = 2**self.bits - 1
            array = stored & stored.dtype.type(high)  # old files keep overlays in the unused bits
            return (high - array if self.photometric == "MONOCHROME1" else array).astype(self.dtype)
        high = high if self.signed else 2**self.bits - 1
        array = stored.astype(np.float64)
        if self.photometric == "MONOCHROME1":
            array = low + high - array
        return (array * self.slope + self.intercept).astype(np.float32)


def _kind(header: Any) -> _Kind:
    photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2")).strip()
    samples = int(header.get("SamplesPerPixel", 1))
    allocated = int(header.get("BitsAllocated", 0))
    bits = int(header.get("BitsStored", allocated))
    signed = bool(header.get("PixelRepresentation", 0))
    if photometric == "PALETTE COLOR" and samples == 1:
        deep = int(header.RedPaletteColorLookupTableDescriptor[2]) > 8
        dtype = "uint16" if deep else "uint8"
        return _Kind(3, dtype, photometric, bits, signed, 1.0, 0.0, header)
    if not (photometric in GREY and samples == 1) and not (photometric in COLOR and samples == 3):
        raise UnreadableError(f"a DICOM image of {samples} samples, {photometric}")
    if not 1 <= bits <= allocated <= 64:
        raise UnreadableError(f"a DICOM image of {bits} bits in {allocated}")
    slope, intercept = _rescale(header)
    plain = (slope, intercept) == (1.0, 0.0) and not signed
    dtype = "float32" if not plain or bits > 16 else "uint16" if bits > 8 else "uint8"
    return _Kind(samples, dtype, photometric, bits, signed, slope, intercept, header)


def _rescale(header: Any) -> tuple[float, float]:
    """Return slope and intercept, of the whole file or of the first frame."""
    place = header
    if "RescaleSlope" not in header:
        for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            groups = header.get(name)
            if groups and groups[0].get("PixelValueTransformationSequence"):
                place = groups[0].PixelValueTransformationSequence[0]
                break
    slope = place.get("RescaleSlope")
    intercept = place.get("RescaleIntercept")
    slope = 1.0 if slope is None else float(slope)
    return slope or 1.0, 0.0 if intercept is None else float(intercept)


def _stored(data: bytes) -> np.ndarray:
    """Decode the first frame, YCbCr as RGB."""
    import pydicom
    from pydicom.encaps import get_frame
    from pydicom.pixels import pixel_array
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    dataset: Any = pydicom.dcmread(io.BytesIO(data), force=True)
    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir()):
        raise UnreadableError("a DICOM file without pixels")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = plain
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        frames = int(dataset.get("NumberOfFrames") or 1)
        frame = get_frame(dataset.PixelData, 0, number_of_frames=frames)
        _check_size(frame, dataset.Rows, dataset.Columns)
    # GDCM holds an old OpenJPEG, which files that are made to do harm should not reach.
    return pixel_array(dataset, index=0, decoding_plugin="pillow" if syntax in JPEG_2000 else "")


def _check_size(frame: bytes, rows: int, columns: int) -> None:
    """Refuse a coded frame that is larger than the header says, before memory is made for it."""
    if frame[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000
        right, bottom, left, top = np.frombuffer(frame, ">u4", 4, 8).tolist()
        size = (bottom - top, right - left)
    else:
        segments = segments_of(frame) if frame[:2] == b"\xff\xd8" else ()
        starts = (at + 5 for kind, at, end in segments if kind in SIZED and at + 9 <= end)
        size = next((struct.unpack_from(">HH", frame, start) for start in starts), (0, 0))
    if size[0] > rows or size[1] > columns:
        raise UnreadableError(
            f"damaged: a frame of {size[0]}×{size[1]} pixels in an image of {rows}×{columns}"
        )


def _check_inflated(data: bytes) -> None:
    """Refuse a deflated file that would fill the memory."""
    at = data.find(DEFLATED.encode(), 132, 4096)
    if at < 0 or data[128:132] != b"DICM":
        return
    # The header's first element tells where the deflated part begins.
    start = 132 + 12 + int.from_bytes(data[140:144], "little")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    if len(inflater.decompress(data[start:], INFLATED)) == INFLATED:
        raise UnreadableError(f"too large: it inflates to more than {INFLATED >> 20} MB")
