"""Images made byte by byte: formats, headers that lie, transparency, bombs, and drawn photos."""

import io
import struct
import zlib

import numpy as np
import PIL
from PIL import ExifTags, Image, features

PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13  # before, it reads no La and no plain YCbCr from a TIFF

NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, raw: bytes, depth=8, color=2, extra=b"", interlace=0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def tiff(width: int, pixels: bytes, **tags: int) -> bytes:
    """One row, uncompressed."""
    entries = {256: width, 257: 1, 259: 1, 262: 1, 273: 0, 277: 1, 278: 1, 279: len(pixels)}
    entries |= {int(ExifTags.Base[name]): value for name, value in tags.items()}
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    entries[258] = tags["BitsPerSample"] * (0x10001 if entries[277] == 2 else 1)  # two shorts, or one
    body = b"".join(
        struct.pack("<HHII", tag, 3, entries[277] if tag == 258 else 1, value) for tag, value in sorted(entries.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + pixels


def two_colors() -> Image.Image:
    image = Image.frombytes("P", (2, 1), b"\0\1")
    image.putpalette([200, 100, 0, 0, 100, 200])
    return image


def palette_with_alpha() -> Image.Image:
    image = two_colors().convert("PA")
    image.putalpha(Image.frombytes("L", (2, 1), b"\0\xff"))
    return image


def trns(width_bits_color: tuple[int, int, int], row: bytes, clear: bytes, before: bytes = b"") -> bytes:
    width, bits, color = width_bits_color
    return png(width, 1, b"\0" + row, bits, color, before + chunk(b"tRNS", clear))


RGBA = np.array([[[9, 9, 9, 0], [1, 2, 3, 255]]], np.uint8)

PALETTE = chunk(b"PLTE", bytes([200, 100, 0, 0, 100, 200]))

CLEAR = {  # two pixels, the first of them transparent; the second's color
    "RGBA": (encode(RGBA), (1, 2, 3)),
    "RGBA TIFF": (encode(RGBA, "TIFF"), (1, 2, 3)),
    "RGBA WEBP": (encode(RGBA, "WEBP", lossless=True), (1, 2, 3)),
    "RGB + tRNS": (trns((2, 8, 2), b"\1\2\3\4\5\6", b"\0\1\0\2\0\3"), (4, 5, 6)),
    "LA": (png(2, 1, bytes([0, 9, 0, 7, 255]), color=4), (7, 7, 7)),
    "16-bit LA": (png(2, 1, struct.pack(">B4H", 0, 9, 0, 0x0707, 65535), 16, 4), (7, 7, 7)),
    "L + tRNS": (trns((2, 8, 0), b"\5\6", b"\0\5"), (6, 6, 6)),
    "1 + tRNS": (trns((2, 1, 0), b"\x80", b"\0\1"), (0, 0, 0)),
    "I;16 + tRNS": (trns((2, 16, 0), struct.pack(">HH", 600, 2570), struct.pack(">H", 600)), (10, 10, 10)),
    "P + tRNS of one color": (trns((2, 8, 3), b"\0\1", b"\0\xff", PALETTE), (0, 100, 200)),
    "P + tRNS of many": (trns((2, 8, 3), b"\0\1", b"\0\xfe", PALETTE), (1, 101, 200)),
    "P GIF": (encode(two_colors(), "GIF", transparency=0), (0, 100, 200)),
    "PA": (encode(palette_with_alpha(), "TIFF"), (0, 100, 200)),
}
if PILLOW_13:
    CLEAR["La"] = (tiff(2, b"\0\0\7\xff", BitsPerSample=8, SamplesPerPixel=2, ExtraSamples=1), (7, 7, 7))

STRANGERS = {
    "text": b"this is not an image, whatever its name says\n",
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "EPS": encode(NOISE, "EPS"),
    "PSD": b"8BPS\0\1" + bytes(40),
    "ICO": encode(NOISE, "ICO"),
    "JPEG 2000": encode(NOISE, "JPEG2000") if features.check("jpg_2000") else b"\0\0\0\x0cjP  \r\n\x87\n",
    "nothing": b"",
}


def webp(width: int, height: int) -> bytes:
    """An animation of a large canvas, whose one frame is a single pixel."""
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    pixel = encode(Image.new("RGB", (1, 1)), "WEBP")[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + size + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    body = b"WEBP" + canvas + b"ANMF" + struct.pack("<I", 16 + len(pixel)) + bytes(16) + pixel
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOMBS = {
    "PNG 13300": lambda: png(13300, 13300, bytes(13300 * 1664), 1, 0),
    "PNG 60000": lambda: png(60000, 60000, b""),
    "PNG of 64 Mpx and a row": lambda: png(8192, 8193, b""),
    "GIF 65535": lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + encode(NOISE, "GIF")[10:],
    "BMP 30000": lambda: encode(NOISE, "BMP")[:18] + struct.pack("<ii", 30000, 30000) + encode(NOISE, "BMP")[26:],
    "PPM 99999": lambda: b"P6 99999 99999 255 ",
    "WEBP 13300": lambda: webp(13300, 13300),
    "WEBP 16384": lambda: webp(16384, 16384),
}

ROWS = [b"\0" + row.tobytes() for row in NOISE]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    image.save(out := io.BytesIO(), "JPEG", quality=quality)
    return Image.open(out).convert("RGB")


def photo(seed: int) -> Image.Image:
    """An image with shapes of many sizes and soft edges, as photos have; each seed gives another."""
    rng = np.random.default_rng(seed)
    layers = []
    for n, share in ((4, 0.5), (8, 0.3), (24, 0.2)):
        noise = Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8))
        layers.append(share * np.asarray(noise.resize((96, 96)), np.float32))
    return Image.fromarray(np.sum(layers, axis=0).astype(np.uint8))
