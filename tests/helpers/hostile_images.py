"""Files from the wild, each under a name that says image, with what must become of it."""

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, features

from helpers.images import BOMBS, CLEAR, NOISE, PALETTE, ROWS, STRANGERS, chunk, encode, exif, png, tiff

GOOD = ""  # else a pattern of the reason
Make = Callable[[Path], object]
JPEG = encode(NOISE, "JPEG")
SECOND = Image.new("RGB", (40, 24), (0, 0, 250))


def _interlaced() -> bytes:
    rows = [b"\0" + row.tobytes() for row in NOISE[::8, ::8]]
    return png(40, 24, b"".join(rows), interlace=1)


def _jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.write(JPEG)
        file.truncate(300 * 2**20)


def _flipped() -> bytes:
    data = bytearray(encode(NOISE))
    data[len(data) // 2] ^= 4
    return bytes(data)


# A text of 200 MB within a small PNG, which no pixel needs, and nothing unpacks.
TEXT_BOMB = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9))
NEVER = "not an image in a known format"
CONTENT: dict[str, tuple[bytes, str]] = {
    "cut in half.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "only its header.jpg": (JPEG[:20], NEVER),
    "cut in half.png": (encode(NOISE)[:1500], "truncated"),
    "cut in half.gif": (encode(NOISE, "GIF")[:-200], "truncated"),
    "cut in half.webp": (encode(NOISE, "WEBP")[:200], "not an image|corrupt"),
    "empty.jpg": (b"", "empty file"),
    "zeros.jpg": (bytes(5000), NEVER),
    "text.jpg": (STRANGERS["text"], NEVER),
    "a page of a server.jpg": (STRANGERS["html"], NEVER),
    "a drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", NEVER),
    "postscript.jpg": (STRANGERS["EPS"], NEVER),
    "photoshop.png": (STRANGERS["PSD"], NEVER),
    "icon.png": (STRANGERS["ICO"], NEVER),
    "jpeg 2000.jpg": (STRANGERS["JPEG 2000"], NEVER),
    "paper.jpg": (b"%PDF-1.7\n", NEVER),
    "packed.jpg": (gzip.compress(JPEG), NEVER),
    "short data.png": (png(40, 24, b"".join(ROWS[:12])), "truncated"),
    "short data, interlaced.png": (_interlaced(), "truncated"),
    "a flipped bit.png": (_flipped(), "corrupt"),
    "a text of 200 MB.png": (png(40, 24, b"".join(ROWS), extra=TEXT_BOMB), GOOD),
    "float.tif": (encode(Image.new("F", (30, 20), 0.5), "TIFF"), "no defined white"),
    "32 bit.tif": (encode(Image.new("I", (30, 20), 7), "TIFF"), "no defined white"),
    "signed.tif": (tiff(1, b"\1\0", BitsPerSample=16, SampleFormat=2), "no defined white"),
    "20000 x 1.png": (encode(Image.new("RGB", (20000, 1))), "200 times"),
    "1 x 20000.png": (encode(Image.new("RGB", (1, 20000))), "200 times"),
    **{f"bomb, {kind}.png": (make(), "more than") for kind, make in BOMBS.items()},
    "bomb.jpg": (_jpeg_of(65000, 65000), "more than"),
    "16 bit.png": (encode(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100), GOOD),
    "16 bit.tif": (encode(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100, "TIFF"), GOOD),
    "CMYK.jpg": (encode(Image.fromarray(NOISE).convert("CMYK"), "JPEG"), GOOD),
    "CMYK.tif": (encode(Image.fromarray(NOISE).convert("CMYK"), "TIFF"), GOOD),
    "palette.png": (encode(Image.fromarray(NOISE).convert("P")), GOOD),
    "grey.jpg": (encode(Image.fromarray(NOISE).convert("L"), "JPEG"), GOOD),
    "one bit.png": (encode(Image.fromarray(NOISE).convert("1")), GOOD),
    "grey with alpha.png": (CLEAR["LA"][0], GOOD),
    "transparent.png": (CLEAR["RGBA"][0], GOOD),
    "a transparent color.png": (CLEAR["RGB + tRNS"][0], GOOD),
    "a transparent palette.png": (CLEAR["P + tRNS of many"][0], GOOD),
    "animated.gif": (encode(NOISE, "GIF", save_all=True, append_images=[SECOND]), GOOD),
    "animated.webp": (encode(NOISE, "WEBP", save_all=True, append_images=[SECOND]), GOOD),
    "animated.png": (encode(NOISE, "PNG", save_all=True, append_images=[SECOND]), GOOD),
    "two pages.tiff": (encode(NOISE, "TIFF", save_all=True, append_images=[SECOND]), GOOD),
    **{f"turned {k}.jpg": (encode(NOISE, "JPEG", exif=exif(k)), GOOD) for k in (*range(1, 9), 99)},
    "broken EXIF.jpg": (encode(NOISE, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"), GOOD),
    "a single pixel.png": (encode(Image.new("RGB", (1, 1), 7)), GOOD),
    "no palette entry.png": (png(4, 1, b"\0\0\1\2\3", 8, 3, PALETTE), GOOD),
    "a JPEG.png": (JPEG, GOOD),
    "LOUD.JPG": (JPEG, GOOD),
    "data behind its end.jpg": (JPEG + bytes(10_000), GOOD),
    "=cmd().jpg": (JPEG, GOOD),
    "[red]x[\u2044a].jpg": (JPEG, GOOD),
    "bell\x07 and clear\x1b[2J.jpg": (JPEG, GOOD),
    "two\nlines.jpg": (b"no image", NEVER),
    "turned\u202egpj.jpg": (JPEG, GOOD),
    "käfer 猫 🐈.jpg": (JPEG, GOOD),
    "100%.jpg": (JPEG, GOOD),
    "x" * 240 + ".jpg": (JPEG, GOOD),
    os.fsdecode(b"\xff\xfe.jpg"): (JPEG, GOOD),
    os.fsdecode(b"\xff\xfd.jpg"): (b"no image", NEVER),
}
if features.check("avif"):
    CONTENT["cut in half.avif"] = (encode(NOISE, "AVIF")[:400], "not an image|corrupt|truncated")
PLACES: dict[str, tuple[Make, str]] = {
    "pipe.jpg": (os.mkfifo, "not a regular file"),
    "sparse.jpg": (_huge, "256 MiB"),
    "link to itself.jpg": (lambda path: path.symlink_to(path), "symbolic links"),
    "link to nothing.jpg": (lambda path: path.symlink_to("nothing"), "No such file"),
    "link to zeros.jpg": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "folder.jpg": (lambda path: (path.mkdir(), (path / "inside.jpg").write_bytes(JPEG)), "/inside.jpg"),
    "loop.jpg": (lambda path: path.symlink_to("."), "nothing"),
}


def write_hostile(folder: Path) -> dict[str, str]:
    """Fill a folder, and say what each image's reason must contain, or nothing where it is good; by path below it."""
    expected = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, (data, reason) in CONTENT.items():
        (folder / name).write_bytes(data)
        expected[name] = reason
    for name, (make, reason) in PLACES.items():
        make(folder / name)
        if reason == "/inside.jpg":
            expected[name + reason] = GOOD
        elif reason != "nothing":
            expected[name] = reason
    return expected
