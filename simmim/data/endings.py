"""How files are recognised by their names; what they are is told from their content later."""

EXTENSIONS: frozenset[str] = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif"),
        *(".tif", ".tiff", ".bmp", ".dib", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
        *(".tga", ".qoi", ".npy", ".heic", ".heif", ".hif", ".dcm", ".dicom", ".ima"),
    }
)
"""Endings of the files that are taken for images, in lower case."""

TARS = (".tar",)
COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar")
"""Endings of what cannot be read in place."""


def is_image(name: str) -> bool:
    """Tell whether a path inside an archive is that of an image, and not hidden."""
    parts = name.split("/")
    if any(part.startswith(".") or part == "__MACOSX" for part in parts if part != "."):
        return False
    dot = parts[-1].rfind(".")
    return dot > 0 and parts[-1][dot:].lower() in EXTENSIONS


ARCHIVES = frozenset({".zip", ".parquet", ".arrow", *TARS, *COMPRESSED})
"""Endings of files that may hold images."""
