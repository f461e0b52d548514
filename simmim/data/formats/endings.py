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
ARCHIVES = frozenset({".zip", ".parquet", ".arrow", *TARS, *COMPRESSED})
"""Endings of files that may hold images."""

DEBRIS = frozenset(
    {
        # Synology, QNAP and other network storage: thumbnails, bins, snapshots
        *("@eadir", "@tmp", "@recycle", "#recycle", "@sharebin", "@transcode", "#snapshot"),
        *("@snapshot", "@snapshots", "@recently-snapshot", "~snapshot", "network trash folder"),
        # Windows
        *("$recycle.bin", "recycler", "system volume information", "found.000", "thumbs.db"),
        *("ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),
        # macOS, Linux, Android, Python, discs of DICOM files
        *("__macosx", "temporary items", "icon\r", "lost+found", "lost.dir", "__pycache__"),
        "dicomdir",
    }
)
"""Names, in lower case, of what systems and tools leave beside files and nobody put there."""


def is_debris(path: str) -> bool:
    """Tell whether any part of a path is hidden, or what a system left there: nobody's image."""
    return any(
        (part.startswith(".") and part not in (".", "..")) or part.lower() in DEBRIS
        for part in path.split("/")
    )


def is_image(name: str) -> bool:
    """Tell whether a path inside an archive is that of an image, and not hidden or debris."""
    last = name.rpartition("/")[2]
    dot = last.rfind(".")
    return dot > 0 and last[dot:].lower() in EXTENSIONS and not is_debris(name)
