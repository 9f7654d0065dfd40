"""HEIC and AVIF where they are read, and one line that says what to install where they are not."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from common.image_formats import missing_reader, readable_formats
from common.images import PixelRules, UnreadableImage, decode, read_capture_time, read_head
from data.image_folder import ImageFolder
from storage.image_tree import find_images

HEIC_HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.fixture
def neither(monkeypatch):
    """A machine with none of the optional readers."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it raises ImportError
    Image.init()
    for name in ("HEIF", "AVIF"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)
    readable_formats.cache_clear()
    yield
    readable_formats.cache_clear()


def test_files_of_a_missing_reader_are_left_out_with_what_to_install(tmp_path, neither):
    for name in ("IMG_1.HEIC", "IMG_2.heif", "a.avif"):
        (tmp_path / name).write_bytes(HEIC_HEAD)
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    tree = find_images(tmp_path)
    assert tree.files == ["b.png"]
    assert tree.left_out.lines("photos") == [
        "photos: 2 left out, HEIC, which needs: pip install pillow-heif: IMG_1.HEIC, IMG_2.heif",
        'photos: 1 left out, AVIF, which needs: pip install "pillow>=11.3": a.avif',
    ]
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match="holds no image .*HEIC, which needs: pip install pillow-heif"):
        ImageFolder(path=tmp_path, image_size=4, classes="one")
    for how in (decode, read_head):
        with pytest.raises(UnreadableImage, match="^it is HEIC, which needs: pip install pillow-heif$"):
            how(tmp_path / "IMG_1.HEIC")
        with pytest.raises(UnreadableImage, match="it is AVIF, which needs"):
            how(HEIC_HEAD[:8] + b"avif" + bytes(12))


def test_other_formats_need_nothing(neither):
    assert missing_reader(".jpg") == missing_reader(".nothing") == missing_reader("") == ""
    assert "JPEG" in readable_formats() and "HEIF" not in readable_formats()


def saved(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def halves():
    image = Image.new("RGB", (64, 32), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 32, 32))
    return image


def exif():
    tags = Image.Exif()
    tags[0x0112] = 6
    tags.get_ifd(0x8769)[0x9003] = "2024:05:01 10:00:00"
    return tags.tobytes()


def test_avif_is_read():
    if "AVIF" not in readable_formats():
        pytest.skip("Pillow without AVIF")
    found = decode(saved(halves(), "AVIF"))
    assert found.format == "AVIF" and found.size == (64, 32)
    assert np.abs(np.asarray(found.image)[4, [4, 60]].astype(int) - [[0, 0, 255], [255, 0, 0]]).max() < 12


def test_heic_is_read_upright():
    pytest.importorskip("pillow_heif")
    assert "HEIF" in readable_formats() and missing_reader(".heic") == ""
    content = saved(halves(), "HEIF", exif=exif())
    for orientation in ("stored", "upright"):  # the turn is part of the picture in this format
        found = decode(content, PixelRules(orientation=orientation))
        assert found.format == "HEIF" and found.size == (32, 64) and found.orientation == 1
        colours = np.asarray(found.image)[[4, 60], 4].astype(int)
        assert np.abs(colours - [[0, 0, 255], [255, 0, 0]]).max() < 12
    assert read_capture_time(content) == read_capture_time(saved(halves(), "JPEG", exif=exif())) > 0
    clear = decode(saved(Image.new("RGBA", (40, 40), (10, 20, 30, 0)), "HEIF"))
    assert clear.transparent and clear.image.getpixel((5, 5)) == (255, 255, 255)


def test_damaged_heic_is_unreadable():
    pytest.importorskip("pillow_heif")
    readable_formats()
    content, draws = saved(halves(), "HEIF"), np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(content)
        for place in draws.integers(0, len(content), 4):
            damaged[place] = int(draws.integers(0, 256))
        try:
            decode(bytes(damaged))
        except UnreadableImage as error:
            assert "\n" not in str(error)


def test_the_time_of_a_photo_is_what_its_camera_wrote():
    def taken(**tags):
        written = Image.Exif()
        written.get_ifd(0x8769).update({int(key[1:], 16): value for key, value in tags.items()})
        return read_capture_time(saved(halves(), "JPEG", exif=written))

    first = taken(x9003="2024:05:01 10:00:00", x9291="25")
    assert taken(x9004="2024:05:01 10:00:07") - first == 6.75
    assert taken(x9003="0000:00:00 00:00:00") is taken(x9003="yesterday") is taken(x9000=b"0230") is None
    assert read_capture_time(b"") is read_capture_time(saved(halves(), "PNG")) is None
