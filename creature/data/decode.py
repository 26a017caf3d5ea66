"""The one decoder: encoded bytes to upright 8-bit RGB pixels, or a short reason why not."""

import hashlib
import os
import stat
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features
from simplejpeg import decode_jpeg

Result = TypeVar("Result")

Image.init()  # all plugins now, or threads would race to load them at their first WEBP

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 64 * 2**20
MAX_ASPECT = 200
# MPO, what phones write, is opened by the JPEG plugin.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM") + ("AVIF",) * bool(features.check("avif"))
PNG = b"\x89PNG\r\n\x1a\n"
END_OF_JPEG = b"\xff\xd9"
TURNS = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
TURN_OF = {orientation: Image.Transpose[name] for orientation, name in enumerate(TURNS, start=2)}
# Pillow reads pixels and EXIF of an opened image when they are first asked for, which two threads must not do at once.
_ONE_AT_A_TIME = Lock()
SIDEWAYS = [Image.Transpose[name] for name in TURNS[3:]]


class BadImage(Exception):
    """An image that cannot be read or decoded; the message is the reason, without the file's name."""


def read(image: Mapping[str, Any]) -> bytes:
    """The bytes in {"bytes": bytes | None, "path": str | None}, or else those of the file at the path.

    Raises BadImage where there are none, or more than MAX_BYTES in the file.
    """
    data = image.get("bytes")
    try:
        if data is None:
            path = image.get("path") or ""
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:  # opening a FIFO would hang
                raise BadImage(f"not a regular file of at most {MAX_BYTES >> 20} MiB")
            with open(path, "rb") as file:
                data = file.read()
    except (OSError, ValueError) as error:  # a ValueError is a NUL in the path
        raise BadImage(getattr(error, "strerror", None) or str(error)) from error
    if not data:
        raise BadImage("empty file")
    return data


def content_hash(data: bytes) -> str:
    """The name of an image by its content: 32 hex digits of BLAKE2b over the file's bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class Encoded:
    """An encoded image, decoded when it is asked for, in the resolution that is needed.

    `size` is its (width, height), upright; `kind` names its format and Pillow's mode. Raises BadImage: unknown format,
    corrupt, truncated, above MAX_PIXELS or MAX_ASPECT, grey without a defined white.
    """

    def __init__(self, data: bytes):
        with _as_bad_image():
            try:
                _ignoring_warnings(lambda: self._open(data))
            except ValueError:  # of a PNG's texts or profile, whose size Pillow limits, and which no pixel depends on
                if not data.startswith(PNG):
                    raise
                _ignoring_warnings(lambda: self._open(_without_texts(data)))

    def _open(self, data: bytes) -> None:
        self._data = data
        self._image = Image.open(BytesIO(data), formats=FORMATS)  # guard: known-formats
        _check_header(self._image)
        self.kind = f"{self._image.format} {self._image.mode}"
        self._decoded: Image.Image | None = None
        if self._image.format == "JPEG" and END_OF_JPEG not in data[-64:] and self._is_whole(data + END_OF_JPEG):
            self._data = data + END_OF_JPEG
            self._image = Image.open(BytesIO(self._data), formats=("JPEG",))
        if self._image.format in ("JPEG", "MPO"):
            self._turn = _turn(self._image)
            width, height = self._image.size
            self.size = (height, width) if self._turn in SIDEWAYS else (width, height)
        else:  # all of it at once: nothing is won by waiting, and a TIFF turns itself, before its EXIF is read
            if self._image.format == "PNG":
                _load_png(self._image, data)  # guard: short-png
            self._image.load()
            rgb = _rgb(self._image)
            self._decoded = _upright(rgb, _turn(self._image))
            self.size = self._decoded.size

    def _is_whole(self, jpeg: bytes) -> bool:
        """Whether all data are there: some cameras leave out the mark of its end alone, and Pillow then gives up."""
        if "progressive" in self._image.info:  # may lack whole scans
            return False
        try:
            decode_jpeg(jpeg, strict=True)
        except Exception:  # as in pixels
            return False
        return True

    def image(self) -> Image.Image:
        """The image in full resolution: RGB, upright and over white."""
        return self.smaller(1)[0]

    def smaller(self, shrink: int) -> tuple[Image.Image, float]:
        """The image in at least 1 / shrink (1, 2, 4, 8) of its resolution, and the fraction that it has.

        A JPEG is cheaper then: details that a smaller image does not show are not decoded (libjpeg's scaled decoding).
        """
        if self._decoded is not None:
            return self._decoded, 1
        shrink = self._possible(shrink)
        with _as_bad_image():
            width, height = self._image.size
            if shrink > 1:
                self._image.draft(None, (width // shrink, height // shrink))
            self._image.load()
            return _upright(_rgb(self._image), self._turn), 1 / shrink

    def pixels(self, shrink: int) -> tuple[np.ndarray, float]:
        """As `smaller`, as (H, W, 3); those of a plain JPEG are decoded by simplejpeg: the same, in less time."""
        if self.kind != "JPEG RGB":
            image, scale = self.smaller(shrink)
            return np.asarray(image), scale
        shrink = self._possible(shrink)
        width, height = (-(-side // shrink) for side in self._image.size)
        try:
            pixels = decode_jpeg(self._data, "RGB", min_width=width, min_height=height)
        except Exception:  # whatever it finds odd, Pillow decides on
            pixels = np.zeros(0)
        if pixels.shape != (height, width, 3):
            image, scale = self.smaller(shrink)
            return np.asarray(image), scale
        upright = pixels if self._turn is None else np.asarray(_upright(Image.fromarray(pixels), self._turn))
        return upright, 1 / shrink

    def _possible(self, shrink: int) -> int:
        """1 where a side that is turned is no multiple: its remainder is padded at the end, which would come first."""
        width, height = self._image.size
        return 1 if self._turn is not None and (width % shrink or height % shrink) else shrink


class Decoded(NamedTuple):
    """The pixels of an image, perhaps in a lower resolution than its `size`, (width, height)."""

    size: tuple[int, int]
    array: np.ndarray  # (H, W, 3)

    def image(self) -> Image.Image:
        """The pixels, in the resolution that they have."""
        return Image.fromarray(self.array)


BLACK = Decoded((1, 1), np.zeros((1, 1, 3), dtype=np.uint8))  # stands for an image that cannot be decoded


def decode(data: bytes) -> Image.Image:
    """An encoded image (its first frame): RGB, upright and over white.

    Raises BadImage, as Encoded does.
    """
    return Encoded(data).image()


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image that Pillow has opened, as `decode` gives one; raises BadImage as it does.

    Threads may share the image.
    """

    def convert() -> Image.Image:
        _check_header(image)
        image.load()
        return _upright(_rgb(image), _turn(image))

    with _as_bad_image(), _ONE_AT_A_TIME:
        return _ignoring_warnings(convert)


def image_of_array(array: np.ndarray) -> Image.Image:
    """An array of pixels as an image: uint8, (H, W, 3) or grey (H, W); raises BadImage for any other."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise BadImage(f"an array must be uint8 of shape (H, W, 3) or (H, W), got {array.dtype} {array.shape}")
    if not array.size:
        raise BadImage(f"an array without pixels, of shape {array.shape}")
    return Image.fromarray(array)


def _ignoring_warnings(decode_image: Callable[[], Result]) -> Result:
    """Decode without heed to Pillow's warnings of odd metadata in good images, whatever the program's filters are.

    Where a filter makes an error of one, it is entered in the registry of the module that warns, as Python does with
    those that it has shown, and the call is made again. catch_warnings would change the filters of all threads. Another
    thread may enter the same one first, or clear the registry by setting a filter: hence more than one attempt.
    """
    attempts = Counter[tuple[str, type, int]]()
    while True:
        try:
            return decode_image()
        except Warning as warning:
            *_, (frame, line) = traceback.walk_tb(warning.__traceback__)
            key = (str(warning), type(warning), line)
            frame.f_globals.setdefault("__warningregistry__", {})[key] = True
            attempts[key] += 1
            if attempts[key] > 3:
                raise


@contextmanager
def _as_bad_image() -> Iterator[None]:
    try:
        yield
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImage(f"not an image in a known format ({', '.join(FORMATS)}), or its header is damaged") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # the plugins raise anything on corrupt data: struct.error, AssertionError, ...
        raise BadImage(f"corrupt image: {' '.join(str(error).split()) or type(error).__name__}"[:200]) from error


def _upright(rgb: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return rgb if turn is None else rgb.transpose(turn)


def _check_header(image: Image.Image) -> None:
    """Refuse by size and kind, before any pixel is decoded."""
    if image.width * image.height > MAX_PIXELS:  # guard: max-pixels
        raise BadImage(f"{image.width} x {image.height} pixels: more than {MAX_PIXELS}")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise BadImage(f"{image.width} x {image.height} pixels: one side is more than {MAX_ASPECT} times the other")
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise BadImage("float, 32-bit and signed pixels have no defined white; convert to 8 or 16 bit")


def _load_png(image: Image.Image, data: bytes) -> None:
    """Decode a PNG over dark grey: where its data ends early, Pillow leaves what was there and raises nothing."""
    image.im = Image.new(image.mode, image.size, 90).im
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    if image.info.get("interlace") or last_row.tobytes() == Image.new(image.mode, last_row.size, 90).tobytes():
        pixels = image.tobytes()
        again = Image.open(BytesIO(data), formats=("PNG",))  # over its own negative
        again.im = Image.frombytes(image.mode, image.size, (~np.frombuffer(pixels, np.uint8)).tobytes()).im
        if again.tobytes() != pixels:
            raise BadImage("truncated image: its data ends before its last row")


def _without_texts(png: bytes) -> bytes:
    """A PNG without its texts and its color profile."""
    kept, place = [PNG], len(PNG)
    while place < len(png):
        length, kind = int.from_bytes(png[place : place + 4]), png[place + 4 : place + 8]
        end = place + 12 + length  # with length, kind and checksum
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[place:end])
        place = end
    return b"".join(kept)


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB, transparency over white."""
    if image.mode.startswith("I"):
        image = _grey(image)
    if image.mode == "La":  # Pillow converts premultiplied grey to nothing but LA
        image = image.convert("LA")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit, linearly: Pillow's own conversion makes everything above 255 white."""
    levels = np.asarray(image).astype(np.float32)
    tags = image.getexif() if image.format == "TIFF" else {}
    white = 2 ** tags.get(ExifTags.Base.BitsPerSample, 16) - 1  # Pillow leaves 12 bits unscaled,
    black = white if tags.get(ExifTags.Base.PhotometricInterpretation) == 0 else 0  # and white-is-zero not inverted
    grey = np.rint(np.abs(levels - black) * (255 / white)).astype(np.uint8)
    grey[levels == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that makes the image upright; broken EXIF is ignored, as viewers do."""
    try:
        return TURN_OF.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (Warning, MemoryError):  # not broken EXIF, and without its turn the image would be another one
        raise
    except Exception:  # Pillow raises anything on broken EXIF: struct.error, SyntaxError, TypeError, ...
        return None
