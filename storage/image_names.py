"""Which names are those of images: for files and for members of tar files alike."""

# Still pictures that Pillow reads, some with a library (common/image_formats.py); a fixed list, so that a data set has
# the same images on every machine. Where a sample of a tar shard has several images, the first in this order is taken.
IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".jpe",
    ".jfif",
    ".bmp",
    ".dib",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".jp2",
    ".j2k",
    ".avif",
    ".tga",
    ".pcx",
    ".qoi",
    ".heic",
    ".heif",
)
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp", ".jpe", ".jfif", ".jp2", ".j2k", ".avif", ".heic", ".heif")
# Made by operating systems and network disks: copies for previews, forks of resources, rescued and deleted files.
_OF_SYSTEMS = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}


def suffix(name: str) -> str:
    """The last suffix of a file name in lower case, with its dot; empty without one."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot >= 0 else ""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden (``.name``, ``._name``) or belongs to an operating system (``__MACOSX``)."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _OF_SYSTEMS
