"""The decoder's promises, each on images that are drawn here."""

import io
import os
import re
import struct
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin, features

from creature.data import decode as module
from creature.data.decode import MAX_BYTES, MAX_PIXELS, BadImage, Encoded, decode, read
from helpers import faults
from helpers.images import BOMBS, CLEAR, NOISE, PALETTE, PILLOW_13, ROWS, STRANGERS, encode, exif, png, tiff

LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {}, "PPM": {}}
FORMATS = [*LOSSLESS, "JPEG", "GIF", *(["AVIF"] if features.check("avif") else [])]


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(decode(data))


def reason(data: bytes) -> str:
    with pytest.raises(BadImage) as error:
        decoded(data)
    message = str(error.value)
    assert message and "\n" not in message and " object at 0x" not in message and len(message) <= 200
    return message


def file_reason(path: object) -> str:
    with pytest.raises(BadImage) as error:
        read({"bytes": None, "path": str(path)})
    assert str(path) not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_lossless_format_gives_its_pixels(kind):
    pixels = decoded(encode(NOISE, kind, **LOSSLESS[kind]))
    np.testing.assert_array_equal(pixels, NOISE)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "AVIF"])
def test_lossy_formats_come_close(kind):
    if kind not in FORMATS:
        pytest.skip("no AVIF in this Pillow")
    smooth = np.stack([*np.meshgrid(np.arange(0, 80, 2), np.arange(0, 48, 2)), np.full((24, 40), 99)], -1)
    pixels = decoded(encode(smooth.astype(np.uint8), kind))
    assert pixels.shape == (24, 40, 3) and np.abs(pixels.astype(int) - smooth).max() < 24


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_exif_orientation_gives_the_upright_picture(kind):
    upright = np.kron(NOISE[:2, :3], np.ones((16, 16, 1), np.uint8))
    side = upright.swapaxes(0, 1)
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    stored |= {5: side, 6: side[::-1], 7: side[::-1, ::-1], 8: side[:, ::-1], 99: upright}
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else LOSSLESS[kind]
    for orientation, pixels in stored.items():
        actual = decoded(encode(np.ascontiguousarray(pixels), kind, exif=exif(orientation), **options)).astype(int)
        assert np.abs(actual - upright).max() <= (4 if kind == "JPEG" else 0), orientation


@pytest.mark.parametrize("broken", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0" + bytes(40), b"x" * 9])
@pytest.mark.filterwarnings("ignore")
def test_broken_exif_is_ignored(broken):
    for kind in ("PNG", "JPEG"):
        np.testing.assert_array_equal(decoded(encode(NOISE, kind, exif=broken)), decoded(encode(NOISE, kind)))


def test_a_turn_that_memory_is_too_short_for_is_no_upright_image(monkeypatch):
    class Full(dict):
        def get(self, *_):
            raise MemoryError

    monkeypatch.setattr(module, "TURN_OF", Full())
    with pytest.raises(MemoryError):
        decoded(encode(NOISE, "JPEG", exif=exif(6)))


RAMP = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
DEEP = {
    "PNG": lambda: encode(RAMP),
    "TIFF little-endian": lambda: encode(RAMP, "TIFF"),
    "TIFF big-endian": lambda: encode(Image.frombytes("I;16B", RAMP.shape, RAMP.astype(">u2").tobytes()), "TIFF"),
    "TIFF deflated": lambda: encode(RAMP, "TIFF", compression="tiff_deflate"),
    "PGM": lambda: encode(RAMP, "PPM"),
}


@pytest.mark.parametrize("kind", DEEP)
def test_16_bit_grey_is_scaled_linearly(kind):
    expected = np.rint(RAMP / 65535 * 255)
    np.testing.assert_array_equal(decoded(DEEP[kind]()), np.stack([expected] * 3, -1))


def test_12_bit_and_white_is_zero_grey_reach_white():
    twelve = tiff(2, bytes([0xFF, 0xF0, 0x00]), BitsPerSample=12)
    np.testing.assert_array_equal(decoded(twelve)[0, :, 0], [255, 0])
    negative = tiff(2, struct.pack("<HH", 0, 65535), BitsPerSample=16, PhotometricInterpretation=0)
    np.testing.assert_array_equal(decoded(negative)[0, :, 0], [255, 0])


def test_levels_without_a_white_are_refused():
    for mode, kind in (("F", "TIFF"), ("I", "TIFF"), ("F", "PPM")):
        assert "no defined white" in reason(encode(Image.new(mode, (3, 2), 7), kind))
    assert "no defined white" in reason(tiff(1, b"\1\0", BitsPerSample=16, SampleFormat=2))


@pytest.mark.parametrize("kind", CLEAR)
def test_transparent_is_white(kind):
    data, color = CLEAR[kind]
    np.testing.assert_array_equal(decoded(data), [[(255, 255, 255), color]])


def test_half_transparent_is_blended_with_white():
    alpha = np.arange(256)
    rgba = np.stack([np.full(256, 40), alpha, np.zeros(256), alpha], -1).astype(np.uint8)[None].repeat(2, axis=0)
    expected = np.rint(rgba[..., :3] * (alpha[:, None] / 255) + 255 - alpha[:, None])
    assert np.abs(decoded(encode(rgba)) - expected).max() <= 1


def test_other_color_spaces_are_converted_as_pillow_does():
    picture = Image.fromarray(NOISE)
    modes = [("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("CMYK", "TIFF"), ("LAB", "TIFF")]
    for mode, kind in modes + [("YCbCr", "TIFF")] * PILLOW_13:
        converted = picture.convert(mode)
        np.testing.assert_array_equal(decoded(encode(converted, kind)), np.asarray(converted.convert("RGB")), mode)
    inverted = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")  # as Adobe writes it: full ink is 0
    assert b"Adobe" in inverted and np.abs(decoded(inverted).astype(int) - (255, 0, 0)).max() < 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_many_frames(kind):
    first, second = Image.new("RGB", (16, 8), (250, 0, 0)), Image.new("RGB", (16, 8), (0, 0, 250))
    data = encode(first, kind, save_all=True, append_images=[second])
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert np.abs(decoded(data).astype(int) - (250, 0, 0)).max() < 8


@pytest.mark.parametrize("kind", STRANGERS)
def test_formats_beyond_the_list_are_refused(kind):
    assert "not an image in a known format (JPEG, PNG, " in reason(STRANGERS[kind])


def texts() -> PngImagePlugin.PngInfo:
    """Two texts of a PNG that are larger than Pillow reads."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a" * 3_000_000, zip=True)
    info.add_itxt("XML:com.adobe.xmp", "a" * 3_000_000, zip=True)
    return info


@pytest.mark.parametrize("extra", [{"icc_profile": bytes(2_000_000)}, {"pnginfo": texts()}])
@pytest.mark.parametrize("mode", ["RGB", "P", "I;16"])
def test_a_png_with_a_large_profile_or_text_is_read(extra, mode):
    deep = Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40) * 60)
    image = deep if mode == "I;16" else Image.fromarray(NOISE).convert(mode)
    assert np.array_equal(decoded(encode(image, "PNG", **extra)), decoded(encode(image, "PNG")))
    assert "truncated" in reason(encode(image, "PNG", **extra)[:-60])


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("filters", ["error", "ignore"])
def test_bombs_are_refused_before_any_pixel_is_decoded(kind, filters, monkeypatch):
    data, decoded = BOMBS[kind](), []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image))
    monkeypatch.setattr(Image.core, "new", lambda mode, size: decoded.append(size))
    monkeypatch.setattr(Image.core, "fill", lambda mode, size, color: decoded.append(size))
    with warnings.catch_warnings():
        warnings.simplefilter(filters)
        assert f"more than {MAX_PIXELS}" in reason(data)
    assert not decoded


def test_the_cap_itself_is_allowed(monkeypatch):
    assert MAX_PIXELS == 64 * 2**20
    monkeypatch.setattr(module, "MAX_PIXELS", 24 * 40)
    assert decoded(encode(NOISE)).shape == (24, 40, 3)
    monkeypatch.setattr(module, "MAX_PIXELS", 24 * 40 - 1)
    assert "more than 959" in reason(encode(NOISE))


def test_slivers_are_refused():
    for size in ((200, 1), (1, 200), (400, 2)):
        assert decoded(encode(Image.new("RGB", size))).shape == (size[1], size[0], 3)
    for size in ((201, 1), (1, 201), (401, 2)):
        assert "200 times" in reason(encode(Image.new("RGB", size)))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_truncated_pictures_are_refused(kind):
    data = encode(NOISE, kind, **LOSSLESS.get(kind, {}))
    for part in np.linspace(0.05, 0.95, 19):
        reason(data[: int(len(data) * part)])


def test_a_jpeg_that_lacks_the_mark_of_its_end_alone_is_whole():
    data = encode(NOISE, "JPEG")
    np.testing.assert_array_equal(decoded(data[:-2]), decoded(data))
    np.testing.assert_array_equal(Encoded(data[:-2]).pixels(1)[0], decoded(data))
    for cut in (data[:-8], encode(NOISE, "JPEG", progressive=True)[:-2]):
        assert "truncated" in reason(cut)


@pytest.mark.parametrize("rows", [0, 1, 12, 23])
def test_a_png_whose_data_ends_early_is_refused(rows):
    assert "truncated" in reason(png(40, 24, b"".join(ROWS[:rows])))
    for depth, color, width in ((1, 0, 5), (8, 0, 40), (16, 0, 80), (8, 4, 80), (8, 6, 160), (8, 3, 40)):
        raw = bytes([0, *range(width)]) * rows
        extra = PALETTE if color == 3 else b""
        assert "truncated" in reason(png(40, 24, raw, depth, color, extra))
        assert decoded(png(40, 24, bytes([0, *range(width)]) * 24, depth, color, extra)).shape == (24, 40, 3)


def test_a_png_may_look_like_a_short_one():
    for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16"):
        for color in (0, 1, 90, 255):
            decoded(encode(Image.new(mode, (5, 4), color)))


@pytest.mark.parametrize("height", [24, 23])
def test_an_interlaced_png_is_decoded_if_complete(height):
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [b"\0" + row.tobytes() for y, x, dy, dx in passes for row in NOISE[y:height:dy, x::dx]]
    np.testing.assert_array_equal(decoded(png(40, height, b"".join(rows), interlace=1)), NOISE[:height])
    for count in (1, 9, 20, len(rows) - 1):
        assert "truncated" in reason(png(40, height, b"".join(rows[:count]), interlace=1))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore")
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
def test_corrupt_images_give_pixels_or_a_reason(kind, changes):
    corrupt = bytearray(encode(NOISE, kind))
    for place, value in changes:
        corrupt[int(place * len(corrupt))] = value
    try:
        assert decode(bytes(corrupt)).mode == "RGB"
    except BadImage as error:
        assert "\n" not in str(error) and "<_io" not in str(error)


def test_a_flipped_bit_in_a_png_is_refused():
    data = bytearray(encode(NOISE))
    data[len(data) // 2] ^= 4
    assert "corrupt" in reason(bytes(data))


ERRORS = [OSError(), SyntaxError("a\nb"), ValueError("x" * 999), struct.error("s"), EOFError(), IndexError(1)]
ERRORS += [OverflowError("o"), KeyError("k"), TypeError("t"), ZeroDivisionError(), RuntimeError("r"), AssertionError()]


@pytest.mark.parametrize("error", ERRORS)
def test_whatever_pillow_raises_becomes_a_reason(error, monkeypatch):
    def fail(image):
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_end", fail)
    assert re.match(r"corrupt image: \S", reason(encode(NOISE)))


def test_lack_of_memory_is_no_fault_of_the_picture(monkeypatch):
    def fail(image):
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_end", fail)
    with pytest.raises(MemoryError):
        decoded(encode(NOISE))


ODD = {
    "palette.png": lambda: CLEAR["P + tRNS of many"][0],
    "cut EXIF.jpg": lambda: encode(NOISE, "JPEG", exif=exif(6).tobytes()[:-4]),
    "cut EXIF.png": lambda: encode(NOISE, "PNG", exif=exif(6).tobytes()[:-4]),
    "cut EXIF.webp": lambda: encode(NOISE, "WEBP", lossless=True, exif=exif(6).tobytes()[:-4]),
    "broken MPO.jpg": lambda: encode(
        Image.fromarray(NOISE), "MPO", save_all=True, append_images=[Image.fromarray(NOISE)]
    ).replace(b"MPF\0II", b"MPF\0XX"),
    "bomb.png": lambda: BOMBS["PNG 13300"](),
}


def test_a_script_shows_no_warning_and_what_is_decoded_does_not_depend_on_filters(tmp_path):
    for name, make in ODD.items():
        (tmp_path / name).write_bytes(make())
    script = """
import hashlib, pathlib, sys, warnings
from concurrent.futures import ThreadPoolExecutor
from creature.console import run
from creature.data.decode import BadImage, decode, read
def digest(path):
    try:
        return hashlib.sha256(decode(read({"path": str(path)})).tobytes()).hexdigest()
    except BadImage as error:
        return str(error)
def main():
    paths, before = sorted(pathlib.Path(sys.argv[1]).iterdir()), list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        for path, what in zip(paths, pool.map(digest, paths * 9)):
            print(path.name, what)
    assert warnings.filters == before
    return 0
run(main) if sys.argv[2] == "script" else main()
"""
    output = []
    for kind, filters in (("script", "always"), ("script", "error"), ("library", "error"), ("library", "always")):
        run = subprocess.run(
            [sys.executable, "-W", filters, "-c", script, str(tmp_path), kind],
            cwd=Path(module.__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0 and bool(run.stderr) == ((kind, filters) == ("library", "always")), run.stderr
        output.append(sorted(run.stdout.splitlines()))
    assert len({tuple(lines) for lines in output}) == 1
    assert output[0][0] == f"bomb.png 13300 x 13300 pixels: more than {MAX_PIXELS}"
    assert all(re.fullmatch(r".+[.]\w+ [0-9a-f]{64}", line) for line in output[0][1:])


def test_a_host_that_makes_errors_of_warnings_gets_the_same_pixels_and_keeps_its_filters():
    for name, make in ODD.items():
        data = make()
        if name == "bomb.png":
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = decoded(data)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            before = list(warnings.filters)
            np.testing.assert_array_equal(decoded(data), expected)
            assert warnings.filters == before


def test_a_warning_that_another_thread_registers_first_is_no_reason(monkeypatch):
    load_end, calls = PngImagePlugin.PngImageFile.load_end, []

    def warn_twice(image):
        calls.append(1)
        if len(calls) <= 2:
            raise UserWarning("odd")
        load_end(image)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_end", warn_twice)
    np.testing.assert_array_equal(decoded(encode(NOISE)), NOISE)


def test_a_warning_that_is_raised_again_and_again_is_a_reason(monkeypatch):
    def fail(image):
        raise UserWarning("of another kind")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_end", fail)
    assert reason(encode(NOISE)) == "corrupt image: of another kind"


def test_threads_give_the_same_pixels():
    pictures = [encode(NOISE, kind, **LOSSLESS.get(kind, {})) for kind in FORMATS]
    pictures += [data for data, _ in CLEAR.values()] + [encode(Image.fromarray(NOISE).convert("LAB"), "TIFF")]
    alone = [decoded(data).tobytes() for data in pictures]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decoded(data).tobytes(), pictures * 20))
    assert together == alone * 20


def test_read_takes_the_embedded_bytes_or_the_file(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"of the file")
    assert read({"bytes": None, "path": str(path)}) == b"of the file"
    assert read({"bytes": b"embedded", "path": str(path)}) == b"embedded"
    assert read({"bytes": b"embedded", "path": None}) == b"embedded"


def test_read_refuses_what_holds_no_bytes(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "full.jpg").write_bytes(b"full")
    assert file_reason(tmp_path / "empty.jpg") == "empty file"
    for nothing in ({"bytes": b"", "path": str(tmp_path / "full.jpg")}, {"bytes": None, "path": None}, {}):
        with pytest.raises(BadImage):
            read(nothing)
    assert file_reason(tmp_path / "absent.jpg")
    assert file_reason(tmp_path / "nul\0.jpg")
    assert "not a regular file" in file_reason(tmp_path)
    assert file_reason(tmp_path / "empty.jpg" / "below.jpg")


def test_read_refuses_a_huge_file_without_reading_it(tmp_path, monkeypatch):
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("opened"))
    assert "256 MiB" in file_reason(path)


def test_read_names_a_lack_of_permission(tmp_path, monkeypatch):
    def deny(*_):
        raise PermissionError(13, "Permission denied", "secret.jpg")

    (tmp_path / "secret.jpg").touch()
    monkeypatch.setattr("builtins.open", deny)
    assert file_reason(tmp_path / "secret.jpg") == "Permission denied"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no FIFO, and a symbolic link needs rights there")
def test_read_never_hangs_on_a_fifo_and_never_follows_a_link_to_nowhere(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "pipe.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "absent.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    reasons: list[str] = []

    def refuse_all():
        reasons.extend(file_reason(tmp_path / name) for name in ("pipe.jpg", "link.jpg", "dangling.jpg", "loop.jpg"))
        reasons.append(file_reason("/dev/zero"))

    thread = threading.Thread(target=refuse_all, daemon=True)
    thread.start()
    thread.join(timeout=5)
    assert len(reasons) == 5 and ["not a regular file" in text for text in reasons] == [True, True, False, False, True]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a symbolic link needs rights on Windows")
def test_read_follows_a_link_to_a_file(tmp_path):
    (tmp_path / "real.jpg").write_bytes(b"real")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "real.jpg")
    assert read({"bytes": None, "path": str(tmp_path / "link.jpg")}) == b"real"


@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    shrink=st.integers(1, 8),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    progressive=st.booleans(),
    turn=st.integers(1, 8),
    mode=st.sampled_from(["RGB", "RGB", "L", "CMYK"]),
)
def test_pixels_of_a_jpeg_are_pillows_bit_for_bit(width, height, shrink, subsampling, progressive, turn, mode):
    shrink = min(shrink, width, height)  # no side becomes less than a pixel
    noise = np.random.default_rng(width * 71 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    data = encode(image, "JPEG", quality=60, subsampling=subsampling, progressive=progressive, exif=exif(turn))
    pixels, scale = Encoded(data).pixels(shrink)
    expected, expected_scale = Encoded(data).smaller(shrink)
    assert scale == expected_scale
    np.testing.assert_array_equal(pixels, np.asarray(expected))


def test_a_plain_jpeg_is_decoded_without_pillow_and_an_odd_one_as_pillow_does(monkeypatch):
    calls = faults.note_calls(monkeypatch, Encoded, "smaller")
    sound = encode(NOISE, "JPEG")
    Encoded(sound).pixels(2)
    assert not calls
    with pytest.raises(BadImage, match="truncated"):
        Encoded(sound[: len(sound) // 2]).pixels(2)
    monkeypatch.setattr(module, "decode_jpeg", lambda *_, **__: np.zeros((1, 1, 3), np.uint8))  # of another size
    np.testing.assert_array_equal(Encoded(sound).pixels(1)[0], decoded(sound))
