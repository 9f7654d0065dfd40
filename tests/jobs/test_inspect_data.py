import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from common.images import pil_to_tensor
from data import DATASETS
from jobs.inspect_data import inspect_data
from jobs.options.inspect_data import InspectOptions
from tests.odd_images import encoded, turned, write_gray16, write_huge


def inspected(output, **options):
    inspect_data(InspectOptions(output=str(output), **options))
    return json.loads((output / "inspection.json").read_text())


def noise(seed, height=20, width=30):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Two classes with odd files of many kinds; one file is twice there, once in each class."""
    root = tmp_path / "in"
    write_gray16(root / "cat")  # two files with equal pixels
    write_huge(root / "cat")  # and three equal ones
    (root / "dog").mkdir()
    noise(1).save(root / "dog" / "a.bmp")
    noise(1).save(root / "cat" / "also_a_dog.png")
    Image.new("RGBA", (300, 40), (9, 9, 9, 100)).save(root / "dog" / "b.webp")
    (root / "dog" / "c.jpg").write_bytes(turned(6, "JPEG"))
    (root / "dog" / "d.png").write_bytes(encoded(noise(2))[:90])
    (root / "dog" / "e.gif").write_bytes(
        encoded(noise(3), "GIF", save_all=True, append_images=[noise(4), noise(5)])
    )
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(root / "dog" / "f.tif")
    (root / "dog" / ".hidden.png").write_bytes(encoded(noise(6)))
    return root


def test_everything_in_a_folder_is_found(folder, tmp_path, capsys):
    found = inspected(tmp_path / "out", data=str(folder))
    assert (found["images"], found["inspected"], found["readable"]) == (13, 13, 10)
    reasons = {reason: names for reason, (_, names) in found["unreadable"].items()}
    assert any("too many pixels" in reason for reason in reasons) and len(reasons) == 3
    assert sorted(sum(reasons.values(), [])) == ["cat/huge.png", "dog/d.png", "dog/f.tif"]
    assert sum(count for count, _ in found["left_out"].values()) == 1
    assert found["labels"]["counts"] == {"cat": 7, "dog": 6} and found["labels"]["images_without_label"] == 0
    assert found["formats"] == {"PNG": 6, "BMP": 1, "WEBP": 1, "JPEG": 1, "GIF": 1}
    assert found["modes"]["I;16"] == 1 and found["modes"]["RGBA"] == 1
    assert (found["transparent_files"], found["turned_files"]) == (1, 1)
    assert found["orientations"] == {"1": 9, "6": 1} and found["files_of_several_pictures"] == 1
    assert found["sizes"]["width"]["most"] == 300 and found["sizes"]["shorter_side"]["least"] == 20
    assert found["sizes"]["shorter_side_below"]["64"] == 5
    assert found["sizes"]["most_frequent"][0] == [64, 64, 5]
    same = found["duplicates"]
    assert (same["groups"], same["copies"], same["groups_of_several_classes"]) == (3, 4, 1)
    assert ["cat/eight.png", "cat/sixteen.png"] in same["first"]
    assert ["cat/also_a_dog.png", "dog/a.bmp"] in same["first"]
    printed = capsys.readouterr()
    page = (tmp_path / "out" / "inspection.md").read_text()
    for text in (
        "cat/huge.png",
        "alpha: white",
        "EXIF 6 1; stored",
        "1 groups have several classes",
        ".hidden.png",
    ):
        assert text in printed.out and text in page, text
    assert "| cat | 7 |" in page and "contact_sheet.png" in page and "Traceback" not in printed.err
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.height == 2 * 98 + 2, "a row per class"


def test_it_sees_what_training_sees(folder, tmp_path):
    for name in ("d.png", "f.tif"):
        (folder / "dog" / name).unlink()
    (folder / "cat" / "huge.png").unlink()
    source = DATASETS["image_folder"](path=folder, image_size=96)
    found = inspected(tmp_path / "out", data={"name": "image_folder", "path": str(folder)})
    assert found["images"] == found["readable"] == len(source)
    assert found["labels"]["counts"] == source.class_counts()
    with Image.open(tmp_path / "out" / "contact_sheet.png") as file:
        sheet = pil_to_tensor(file.convert("RGB"))
    left = sheet.shape[2] - 6 * 98 - 2  # names stand before six columns
    for label, row in ((0, 0), (1, 1)):
        for column, index in enumerate(np.flatnonzero(source.labels == label)):
            top, start = 2 + row * 98, left + 2 + column * 98
            shown = sheet[:, top : top + 96, start : start + 96]
            wanted, _ = source.load(int(index), np.random.default_rng(0))
            assert torch.equal(shown, wanted), (label, column)


def test_a_list_is_looked_at_with_its_labels(folder, tmp_path):
    (folder / "labels.csv").write_text(
        "file_name,label\ncat/also_a_dog.png,tabby\ndog/a.bmp,poodle\nlost.png,poodle\n"
    )
    found = inspected(tmp_path / "out", data=str(folder / "labels.csv"))
    assert found["images"] == 2 and found["left_out"] == {"a file that is not there": [1, ["lost.png"]]}
    assert set(found["labels"]["counts"]) == {"poodle", "tabby"}


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_shards_with_labels_and_captions(tmp_path):
    members = []
    for i in range(5):
        members += [
            (f"{i}.png", encoded(noise(i))),
            (f"{i}.cls", b"2" if i else b"x"),
            (f"{i}.txt", b"word" * i),
        ]
    tar_of(tmp_path / "a.tar", [*members, ("img_0.5.jpg", encoded(noise(9), "JPEG"))])
    found = inspected(tmp_path / "out", data=str(tmp_path / "a.tar"))
    assert found["images"] == found["readable"] == 5
    labels = found["labels"]
    assert labels["counts"] == {"0": 0, "1": 0, "2": 4} and labels["without_images"] == 2
    assert labels["images_without_label"] == 1 and sum(n for n, _ in labels["without_label"].values()) == 1
    assert found["captions"]["images"] == 5 and found["captions"]["empty"] == 1
    assert found["captions"]["characters"]["most"] == 16
    assert sum(count for count, _ in found["left_out"].values()) == 1
    assert [p.name for p in tmp_path.iterdir() if "index" in p.name] == [], (
        "nothing is left beside the shards"
    )


def test_patterns_parts_and_recipes(tmp_path, program):
    for i in range(12):
        noise(i).save(tmp_path / f"{i:02d}.png")
    found = inspected(tmp_path / "out", data=f"{tmp_path}/0*.png", max_images=5, workers=1)
    assert (found["images"], found["inspected"], found["labels"]) == (10, 5, None)
    recipe = tmp_path / "recipe.yaml"
    section = "{name: openmoji, image_size: 16, categories: [Flags]}"
    recipe.write_text(
        f"tokenizer: {{name: titok}}\ntraining: {{max_steps: 3}}\ndata: {{validation: {section}}}\n"
    )
    arguments = [f"config={recipe}", "split=validation", "max_images=6", f"output={tmp_path / 'flags'}"]
    done = program(inspect_data, InspectOptions, *arguments)
    assert done.code == 0, done.err
    flags = json.loads((tmp_path / "flags" / "inspection.json").read_text())
    assert list(flags["labels"]["counts"]) == ["Flags"] and flags["sizes"]["most_frequent"] == [[16, 16, 6]]
    done = program(inspect_data, InspectOptions, f"config={recipe}", "split=train")
    assert done.code == 1 and "data holds no images of train" in done.err
    with pytest.raises(ValueError, match="alpha=drop is for a path; a data section takes data.alpha"):
        InspectOptions(data={"name": "image_folder", "path": "x"}, alpha="drop")
    for data, message in (("nowhere", "nowhere is neither"), (f"{tmp_path}/*.jpg", "no file fits data=")):
        done = program(inspect_data, InspectOptions, f"data={data}")
        assert done.code == 1 and message in done.err


def test_parquet_files(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    column = [{"bytes": encoded(noise(i)), "path": f"{i}.png"} for i in range(4)]
    parquet.write_table(arrow.table({"image": column, "label": [0, 1, 1, 1]}), tmp_path / "train-0.parquet")
    for data in (str(tmp_path), str(tmp_path / "train-0.parquet")):
        found = inspected(tmp_path / "out", data=data)
        assert found["images"] == found["readable"] == 4
        assert list(found["labels"]["counts"].values()) == [1, 3]
