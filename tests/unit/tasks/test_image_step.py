"""Test that images are read as people see them, and that a file's step prepares them bitwise as in training."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from messages import says
from msh.tasks.bundled import bundled
from msh.tasks.image_step import ReadImages, read_header
from msh.tasks.images import image_folder
from msh.tasks.preprocessing import prepare, steps_from_data, steps_to_data


def encoded(image, form, **settings):
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def grey(*levels, dtype=np.uint8):
    """One row of pixels."""
    return Image.fromarray(np.array([levels], dtype))


def palette(transparent=None):
    """Black, red and white."""
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 255, 0, 0, 255, 255, 255])
    image.putdata([0, 1, 2])
    return encoded(image, "PNG", **({} if transparent is None else {"transparency": transparent}))


def row(result):
    """The first channel's first row, in 255ths."""
    return (result[0, 0, 0] * 255).tolist()


CMYK = Image.new("CMYK", (3, 1))
CMYK.putdata([(0, 0, 0, 255), (0, 0, 0, 0), (255, 255, 255, 0)])
ALPHA = Image.new("LA", (3, 1))
ALPHA.putdata([(10, 255), (10, 0), (55, 51)])


@pytest.mark.parametrize(
    ("image", "levels"),
    [
        (encoded(grey(0, 20000, 65535, dtype=np.uint16), "PNG"), [0, 20000 / 257, 255]),
        (encoded(grey(0, 20000, 65535, dtype=np.uint16), "TIFF"), [0, 20000 / 257, 255]),
        (encoded(grey(0, 0.25, 1, dtype=np.float32), "TIFF"), [0, 63.75, 255]),
        (encoded(Image.frombytes("1", (3, 1), b"\x40"), "PNG"), [0, 255, 0]),
        (encoded(grey(7, 8, 9), "PNG", transparency=8), [7, 255, 9]),
        (encoded(ALPHA, "PNG"), [10, 255, 215]),
        (encoded(CMYK, "TIFF"), [0, 255, 0]),
        (palette(), [0, 76, 255]),
        (palette(transparent=0), [255, 76, 255]),
        (b"P2 3 1 1000\n0 500 1000\n", [0, 127.5, 255]),
    ],
    ids=["16-bit PNG", "16-bit TIFF", "float TIFF", "1-bit", "tRNS", "alpha", "CMYK", "palette", "its hole", "PGM"],
)
def test_each_kind_of_image_is_what_people_see(image, levels):
    step = ReadImages("L", (1, 3))
    opened = Image.open(io.BytesIO(image))
    for inputs in ([image], [opened]):
        torch.testing.assert_close(
            step(inputs)[0, 0, 0] * 255, torch.tensor(levels, dtype=torch.float32), atol=1, rtol=0
        )
    assert ReadImages("RGB", (1, 3))([image]).shape == (1, 3, 1, 3)


def test_levels_of_16_bits_stay_distinct():
    levels = np.arange(0, 65536, 7, dtype=np.uint16)[None]
    result = ReadImages("L", levels.shape)([encoded(Image.fromarray(levels), "PNG")])
    assert result.unique().numel() == levels.size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_images_are_upright_whatever_their_orientation(orientation, form):
    upright = np.zeros((16, 8), np.uint8)
    upright[:8] = 255
    upright[:8, :4] = 128
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpositions that undo each orientation
    image = Image.fromarray(upright)
    stored = image.transpose(Image.Transpose(back[orientation])) if orientation > 1 else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(stored, form, exif=exif, quality=100, lossless=True)
    opened = Image.open(io.BytesIO(content))
    before = opened.size
    for inputs in ([content], [opened]):
        result = ReadImages("L", (16, 8))(inputs)[0, 0]
        torch.testing.assert_close(result, torch.from_numpy(upright) / 255, atol=0.05, rtol=0)
    assert opened.size == before or form == "TIFF"  # Pillow itself turns TIFFs when it loads them


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        ("stretch", [[0, 255], [0, 255]]),
        ("crop", [[0, 255], [0, 255]]),
        ("pad", [[9, 9, 9, 9], [0, 0, 255, 255], [0, 0, 255, 255], [9, 9, 9, 9]]),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_are_fitted_into_a_size(fit, expected, mode):
    pixels = np.zeros((2, 4), np.uint8)
    pixels[:, 2:] = 255
    expected = torch.tensor(expected, dtype=torch.float32) / 255
    step = ReadImages(mode, tuple(expected.shape), fit=fit, background=9)
    for image in (pixels, pixels.astype(np.float32) / 255, pixels.astype(np.uint16) * 257):
        result = step([image])[0, 0]
        assert result.shape == expected.shape
        if fit != "stretch":
            torch.testing.assert_close(result, expected, atol=0.01, rtol=0)


def test_a_background_shows_behind_transparent_pixels():
    pixels = np.zeros((1, 2, 4), np.uint8)
    pixels[0, 0] = (50, 50, 50, 255)
    for background in (0, 100, 255):
        step = ReadImages("RGB", (1, 2), background=background)
        for image in (pixels, Image.fromarray(pixels), pixels.astype(np.float64) / 255):
            assert row(step([image])) == pytest.approx([50, background])


# ---- arrays


def test_arrays_may_have_channels_first_or_last():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), np.uint8)  # (images, height, width, channels)
    step = ReadImages("RGB", (8, 9))
    expected = step([Image.fromarray(image) for image in pixels])
    for last in (pixels, pixels / 255):
        first = np.moveaxis(last, -1, 1)
        for images in (last, first, torch.from_numpy(last), torch.from_numpy(first), list(first)):
            torch.testing.assert_close(step(images), expected)


def test_axes_that_could_both_be_channels_are_numpys_last_and_torchs_first():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), np.uint8)
    step = ReadImages("RGB", (3, 5))
    expected = step([Image.fromarray(image) for image in pixels])
    assert torch.equal(step(pixels), expected)
    pixels = torch.from_numpy(np.moveaxis(pixels, -1, 1).copy())  # (images, 3, 3, 5)
    assert torch.equal(step(pixels), expected)


def test_a_batch_equals_its_images_one_by_one():
    generator = np.random.default_rng(0)
    for dtype in (np.uint8, np.uint16, np.float32, bool):
        pixels = generator.integers(0, 2 if dtype in (bool, np.float32) else 256, (6, 5, 7)).astype(dtype)
        for step in (ReadImages("L", (5, 7)), ReadImages("RGB", (4, 4), fit="crop")):
            assert torch.equal(step(pixels), torch.cat([step([image]) for image in pixels]))
            assert torch.equal(step(pixels), step(torch.from_numpy(pixels)))


@pytest.mark.parametrize("channels", [1, 3])
def test_tensors_are_laid_out_row_by_row(channels):
    """Strides choose kernels, and so the last bits of a convolution."""
    pixels = np.zeros((4, 5, 6, channels))
    expected = torch.empty(4, channels, 5, 6).stride()
    step = ReadImages("L" if channels == 1 else "RGB", (5, 6))
    for images in (pixels, np.moveaxis(pixels, -1, 1), list(pixels), pixels.astype(np.uint8)):
        assert step(images).stride() == expected


def test_no_images_are_no_images():
    for inputs in ([], np.zeros((0, 4, 4), np.uint8), np.zeros((0, 9, 9), np.uint8)):
        assert ReadImages("L", (4, 4))(inputs).shape == (0, 1, 4, 4)


def test_read_only_arrays_are_read():
    pixels = np.zeros((2, 4, 4), np.float32)
    pixels.flags.writeable = False
    assert ReadImages("L", (4, 4))(pixels).sum() == 0


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.array([[0, 4095]], np.int32), r"its values are from 0 to 4095: .*source.range=\[BLACK,WHITE\]"),
        (np.array([[0.0, 1.5]]), "its values are from 0 to 1.5"),
        (np.array([[0.0, np.nan]]), "no finite numbers"),
        (np.zeros((2, 2, 5)), says("inputs: the shape of each image", value=(2, 2, 5))),
        (np.zeros(7), says("inputs: the shape of each image", value=(7,))),
        ("nowhere.png", "nowhere.png cannot be read"),
        (b"no image", "image 0 cannot be read: cut short or damaged, or not an image"),
        (7, "image 0 cannot be read: a int is no path, bytes, Pillow image or array"),
        (encoded(grey(0, 70000, dtype=np.int32), "TIFF"), "its values are from 0 to 70000"),
    ],
)
def test_images_without_a_meaning_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        ReadImages("L", (2, 2))([image])


@pytest.mark.parametrize("inputs", ["cat.png", b"\x89PNG", 7, Image.new("L", (2, 2))])
def test_one_image_is_no_sequence_of_images(inputs):
    with pytest.raises(ValueError, match="inputs must be a sequence of images"):
        ReadImages("L", (2, 2))(inputs)


def test_a_range_says_which_values_are_black_and_white():
    step = ReadImages("L", (1, 4), range=(100, 300))
    for dtype in (np.uint16, np.int64, np.float32):
        assert step([np.array([[0, 100, 200, 999]], dtype)])[0, 0, 0].tolist() == [0, 0, 0.5, 1]
    assert row(step([np.array([[0, 100, 200, 255]], np.uint8)])) == pytest.approx([0, 100, 200, 255])


def test_all_images_that_cannot_be_read_are_named():
    with pytest.raises(ValueError, match="image 1 cannot be read") as caught:
        ReadImages("L", (1, 1))([np.zeros((1, 1)), b"", np.zeros((1, 1)), None])
    assert "image 3" in str(caught.value)
    with pytest.raises(ValueError, match="and 80 more"):
        ReadImages("L", (1, 1))([b""] * 100)


# ---- through a file


def through_json(steps):
    return steps_from_data(json.loads(json.dumps(steps_to_data(steps))))


@pytest.mark.parametrize("settings", [{}, {"size": 5}, {"size": [4, 9], "fit": "crop", "mode": "L"}, {"fit": "pad"}])
def test_a_files_step_prepares_images_bitwise_as_in_training(settings, tmp_path):
    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(5):
            image = Image.fromarray(generator.integers(0, 256, (6 + i % 2, 8, 3), np.uint8))
            image.save(tmp_path / label / f"{i}.{'png' if i else 'jpg'}")
    data = image_folder(str(tmp_path), test_path=str(tmp_path), **settings)
    files = sorted(tmp_path.glob("*/*"), key=lambda file: (file.parent, file.name))
    steps = through_json(data.steps)
    assert steps == data.steps
    images = [Image.open(file) for file in files]
    arrays = [np.asarray(image) for image in images]
    for inputs in (files, [str(file) for file in files], [file.read_bytes() for file in files], images, arrays):
        assert torch.equal(prepare(steps, inputs), data.test.inputs)


def test_digits_are_read_from_scikit_learns_arrays_and_from_images():
    from sklearn.datasets import load_digits

    data, digits = bundled("digits"), load_digits().images
    steps = through_json(data.steps)
    expected = torch.as_tensor(digits[:, None], dtype=torch.float32)
    assert torch.equal(prepare(steps, digits), expected)
    assert torch.equal(torch.cat([data.train.inputs, data.test.inputs]).sum(0), expected.sum(0))
    image = Image.fromarray((digits[0] * 255 / 16).round().astype(np.uint8))
    torch.testing.assert_close(prepare(steps, [image]), expected[:1], atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"size": [0, 4]},
        {"size": [2**20, 2**20]},
        {"size": 4},
        {"mode": "CMYK"},
        {"fit": "tile"},
        {"background": 999},
        {"range": [1, 1]},
        {"range": [0, float("inf")]},
        {"more": 1},
    ],
)
def test_damaged_steps_are_refused(change):
    (data,) = steps_to_data((ReadImages("L", (4, 4)),))
    with pytest.raises(ValueError, match="the preprocessing is invalid"):
        steps_from_data([data | change])


def bomb(width, height):
    """A PNG of few bytes whose header promises many pixels."""
    content = bytearray(encoded(Image.new("L", (4, 4)), "PNG"))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(("width", "height"), [(5000, 5000), (12000, 12000), (2**31 - 1, 2**31 - 1), (0, 4)])
def test_headers_that_promise_too_many_pixels_are_refused(width, height, tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb(width, height))
    for image in (bomb(width, height), tmp_path / "bomb.png"):
        with pytest.raises(ValueError, match="cannot be read: cut short or damaged, or not an image"):
            ReadImages("L", (4, 4))([image])


def deep_png(path, kind, clear, levels):
    """Write a PNG of one row, 16 bits deep, in which a grey level or colour is transparent."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    width = len(levels) // len(clear)
    header = struct.pack(">IIBBBBB", width, 1, 16, kind, 0, 0, 0)
    rows = zlib.compress(b"\0" + struct.pack(f">{len(levels)}H", *levels))
    parts = ((b"IHDR", header), (b"tRNS", struct.pack(f">{len(clear)}H", *clear)), (b"IDAT", rows), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


def test_a_transparent_level_of_16_bits_is_the_background(tmp_path):
    path = deep_png(tmp_path / "a.png", 0, [1000], [1000, 1001, 65535])
    pixels = ReadImages("L", (1, 3))([path])
    assert pixels.flatten().tolist() == pytest.approx([1.0, 1001 / 65535, 1.0])
    dark = ReadImages("L", (1, 3), background=51, range=(0, 10_000))([path])
    assert dark.flatten().tolist() == pytest.approx([0.2, 0.1001, 1.0])


def test_a_transparent_colour_of_16_bits_is_refused_by_name(tmp_path):
    path = deep_png(tmp_path / "b.png", 2, [1000, 2000, 3000], [1000, 2000, 3000, 4000, 5000, 6000])
    with pytest.raises(ValueError, match=r"b\.png cannot be read: one of its colours of 16 bits is transparent"):
        ReadImages("RGB", (1, 2))([path])


def test_headers_name_colour_profiles_other_than_srgb(tmp_path):
    for name, profile in (("lab", ImageCms.createProfile("LAB")), ("srgb", ImageCms.createProfile("sRGB"))):
        content = ImageCms.ImageCmsProfile(profile).tobytes()
        Image.new("RGB", (2, 2)).save(tmp_path / f"{name}.png", icc_profile=content)
    Image.new("RGB", (2, 2)).save(tmp_path / "damaged.png", icc_profile=b"no profile")
    names = {name: read_header(tmp_path / f"{name}.png").profile for name in ("lab", "srgb", "damaged")}
    assert names["srgb"] == ""
    assert "Lab" in names["lab"]
    assert names["damaged"] == "unreadable"


def rgb_profile(gamma, swapped=False):
    """The bytes of an ICC profile (version 2) with sRGB's primaries, or red and blue swapped, and another gamma."""
    primaries = [(0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)]  # adapted to D50

    def fixed(*values):
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    points = [b"XYZ " + bytes(4) + fixed(*point) for point in (primaries[::-1] if swapped else primaries)]
    name = b"odd RGB\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249),
        **dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), points, strict=True)),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
        b"cprt": b"text" + bytes(4) + b"none\0",
    }
    return icc_file(b"mntr", b"RGB ", tags)


def grey_profile(gamma):
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    white = b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)
    name = b"odd grey\0"
    described = b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78)
    return icc_file(b"mntr", b"GRAY", {b"desc": described, b"wtpt": white, b"kTRC": curve})


def cmyk_profile():
    """The bytes of a profile whose colour is the complement of the inks, each from 0 to 1, as a table of Lab."""
    corners = [[i >> place & 1 for place in (3, 2, 1, 0)] for i in range(16)]  # cyan turns slowest
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    table = b""
    for *inks, black in corners:
        colour = tuple(255 * (1 - ink) * (1 - black) for ink in inks)
        lab = ImageCms.applyTransform(Image.new("RGB", (1, 1), colour), to_lab).getpixel((0, 0))
        table += bytes(lab)
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + 4 * ramp + table + 3 * ramp
    name = b"odd inks\0"
    described = b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78)
    white = b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)
    tags = {b"desc": described, b"wtpt": white, b"A2B0": lut, b"A2B1": lut, b"cprt": b"text" + bytes(4) + b"none\0"}
    return icc_file(b"prtr", b"CMYK", tags, space=b"Lab ")


def icc_file(kind, colours, tags, space=b"XYZ "):
    offset, directory, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        directory += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    size = offset + len(body)
    header = struct.pack(">I4s4s4s4s4s", size, bytes(4), bytes([2, 0x40, 0, 0]), kind, colours, space)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + directory + body


def as_srgb(level):
    """Encode light in [0, 1] as sRGB does, from 0 to 255."""
    return 255 * (12.92 * level if level <= 0.0031308 else 1.055 * level ** (1 / 2.4) - 0.055)


CONVERT = ReadImages("RGB", (1, 1), profiles=True)


def levels(step, image):
    return (step([image]) * 255).flatten().tolist()


def saved(image, path, profile, **settings):
    image.save(path, icc_profile=profile, **settings)
    return path


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_colours_are_converted_to_srgb(suffix, tmp_path):
    lossless = {"lossless": True} if suffix == "webp" else {}
    path = saved(Image.new("RGB", (1, 1), (200, 100, 30)), tmp_path / f"a.{suffix}", rgb_profile(1.0), **lossless)
    assert levels(CONVERT, path) == pytest.approx([as_srgb(v / 255) for v in (200, 100, 30)], abs=1.5)
    assert levels(ReadImages("RGB", (1, 1)), path) == [200, 100, 30]  # as networks of earlier releases were trained
    with Image.open(path) as image:
        assert levels(CONVERT, image) == levels(CONVERT, path.read_bytes()) == levels(CONVERT, path)
    header = read_header(path)
    assert (header.profile, header.is_converted) == ("odd RGB", True)
    swapped = saved(Image.new("RGB", (1, 1), (255, 0, 0)), tmp_path / "b.png", rgb_profile(2.2, swapped=True))
    assert levels(CONVERT, swapped) == pytest.approx([0, 0, 255], abs=2)


def test_srgb_profiles_change_no_bit_and_damaged_ones_are_ignored(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    pixels = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    step = ReadImages("RGB", (8, 8), profiles=True)
    plain = step([saved(pixels, tmp_path / "plain.png", None)])
    for name, profile in (("srgb", srgb), ("lab", lab), ("damaged", b"x" * 200), ("grey", grey_profile(1.0))):
        path = saved(pixels, tmp_path / f"{name}.png", profile)
        assert torch.equal(step([path]), plain)
        assert not read_header(path).is_converted


def test_profiles_of_grey_palettes_transparency_and_inks_are_converted(tmp_path):
    grey = saved(Image.new("L", (1, 1), 128), tmp_path / "grey.png", grey_profile(1.0))
    lit = as_srgb(128 / 255)
    assert levels(CONVERT, grey) == pytest.approx([lit] * 3, abs=1.5)
    assert levels(ReadImages("L", (1, 1), profiles=True), grey) == pytest.approx([lit], abs=1.5)
    half = saved(Image.new("LA", (1, 1), (128, 51)), tmp_path / "half.png", grey_profile(1.0))
    assert levels(CONVERT, half) == pytest.approx([lit * 0.2 + 255 * 0.8] * 3, abs=1.5)
    clear = saved(Image.new("RGBA", (1, 1), (128, 0, 0, 51)), tmp_path / "clear.png", rgb_profile(1.0))
    assert levels(CONVERT, clear) == pytest.approx([lit * 0.2 + 204, 204, 204], abs=1.5)
    palette = saved(Image.new("RGB", (1, 1), (128, 0, 0)).quantize(2), tmp_path / "palette.png", rgb_profile(1.0))
    assert levels(CONVERT, palette) == pytest.approx([lit, 0, 0], abs=1.5)
    inks = saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), tmp_path / "inks.tiff", cmyk_profile())
    assert read_header(inks).is_converted
    assert levels(CONVERT, inks) == pytest.approx([255, 0, 0], abs=4)
    black = saved(Image.new("CMYK", (1, 1), (0, 0, 0, 255)), tmp_path / "black.tiff", cmyk_profile())
    assert levels(CONVERT, black) == pytest.approx([0, 0, 0], abs=4)


MASKED = np.ma.masked_array(np.full((2, 4, 4, 3), 7, np.uint8), np.arange(96).reshape(2, 4, 4, 3) == 90)


@pytest.mark.parametrize(
    "images", [MASKED, list(MASKED), MASKED[..., 0], MASKED / 255.0], ids=["batch", "list", "grey", "floats"]
)
def test_masked_pixels_are_refused(images):
    with pytest.raises(ValueError, match=r"(^|image 1 cannot be read: )inputs must be without masked values"):
        ReadImages("RGB", (4, 4))(images)
    assert ReadImages("RGB", (4, 4))(images[:1]).shape == (1, 3, 4, 4)


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (0, 0)])
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_images_without_pixels_are_refused(fit, size):
    step = ReadImages("RGB", (4, 4), fit)
    arrays = [np.zeros((*size, channels), dtype) for channels in (1, 3, 4) for dtype in (np.uint8, np.float32)]
    pillow = [Image.new(mode, size) for mode in ("L", "RGB", "RGBA", "F", "I;16")]
    for image in (*arrays, *pillow):
        with pytest.raises(ValueError, match="image 1 cannot be read: it has no pixels"):
            step([np.zeros((4, 4, 3), np.uint8), image])
    for array in arrays:
        with pytest.raises(ValueError, match="no pixels"):
            step(array[None])
    assert step(np.zeros((0, 4, 4, 3), np.uint8)).shape == (0, 3, 4, 4)
