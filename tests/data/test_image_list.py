"""Training from lists of files: classes, captions, and what is left out."""

import numpy as np
import pytest
from PIL import Image

from data.image_list import ImageList


@pytest.fixture
def pictures(tmp_path):
    for i, name in enumerate(("a.png", "B.PNG", "c.png")):
        Image.new("RGB", (20, 16), (40 * i, 0, 0)).save(tmp_path / name)
    return tmp_path


def write(folder, content, name="list.csv"):
    (folder / name).write_text(content)
    return folder / name


def test_names_of_classes_and_what_is_left_out(pictures):
    path = write(
        pictures,
        "path,label\nc.png,dog\nB.PNG,cat\na.png,dog\nIMG.MOV,dog\nlost.png,cat\nnotes.txt,cat\na.png,dog\n",
    )
    source = ImageList(path=path, image_size=16)
    assert source.class_names == ["cat", "dog"] and source.labels.tolist() == [1, 0, 1, 1]
    image, label = source.load(1, np.random.default_rng(0))
    assert image.shape == (3, 16, 16) and image[0, 0, 0] == 40 and label == 0
    assert source.file(0)[1].startswith(b"\x89PNG")
    assert source.left_out.lines("x") == [
        "x: 1 left out, a video: IMG.MOV",
        "x: 1 left out, a file that is not there: lost.png",
        "x: 1 left out, not an image by its suffix: notes.txt",
    ]


def test_numbers_are_positions_in_the_names(pictures):
    path = write(pictures, "path,label\na.png,2\nc.png,0\nB.PNG,\n")
    source = ImageList(path=path, image_size=16)
    assert source.class_names == ["0", "1", "2"] and source.labels.tolist() == [2, 0]
    assert source.left_out.counts == {"without a label": 1}
    names = ImageList(path=path, image_size=16, class_names=["x", "y", "z"])
    assert names.class_names == ["x", "y", "z"] and names.labels.tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"list.csv: line 2: a.png has label 2, but there are 2 classes"):
        ImageList(path=path, image_size=16, class_names=["x", "y"])


def test_numbers_that_may_be_names_are_said(pictures, capsys):
    path = write(pictures, "path,label\na.png,2024\nc.png,2023\n")
    assert len(ImageList(path=path, image_size=16).class_names) == 2025
    assert "labels up to 2024 make 2025 classes, of which 2 have images" in capsys.readouterr().err
    ImageList(path=write(pictures, path.read_text().replace("label", "class")), image_size=16)
    assert not capsys.readouterr().err


def test_given_names_fix_the_numbers_of_classes(pictures):
    path = write(pictures, "path,class\na.png,2024\n")
    source = ImageList(path=path, image_size=16, class_names=["2023", "2024"])
    assert source.labels.tolist() == [1]
    with pytest.raises(ValueError, match=r"list.csv: line 2: label '2024' is not in class_names"):
        ImageList(path=path, image_size=16, class_names=["2023"])


def test_captions_and_no_labels(pictures):
    path = write(pictures, 'file_name,text\na.png,"a, b"\nB.PNG,\nc.png,é\n')
    source = ImageList(path=path, image_size=16, captions=True)
    assert source.has_captions and source.captions([1, 0]) == ["é", "a, b"]
    assert source.class_names == ["image"] and source.left_out.counts == {"without a caption": 1}
    assert len(ImageList(path=path, image_size=16)) == 3
    with pytest.raises(ValueError, match='no captions: expected a column "caption"'):
        ImageList(path=write(pictures, "path\na.png\n"), image_size=16, captions=True)


def test_paths_start_at_the_list_or_at_a_folder_and_photos_stand_upright(pictures, tmp_path):
    photo = Image.new("RGB", (20, 10), (255, 0, 0))
    photo.paste((0, 0, 255), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(pictures / "photo.jpg", exif=exif, quality=95)
    (tmp_path / "run").mkdir()
    path = write(tmp_path / "run", "path\nphoto.jpg\n")
    with pytest.raises(ValueError, match=r"no image that can be used; paths start at .*run .*photo.jpg"):
        ImageList(path=path, image_size=10)
    rng = np.random.default_rng(0)
    upright = ImageList(path=path, image_size=10, images=pictures, orientation="upright").load(0, rng)[0]
    stored = ImageList(path=path, image_size=10, images=pictures).load(0, rng)[0]
    assert upright[2, 0].min() > 200 and upright[2, -1].max() < 60
    assert stored[2, :, 0].min() > 200 and stored[2, :, -1].max() < 60
    with pytest.raises(FileNotFoundError, match=r"image folder .*gone"):
        ImageList(path=path, image_size=10, images=tmp_path / "gone")
