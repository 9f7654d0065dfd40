import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluator import image_files
from evaluator import image_stream as images_module
from evaluator.image_files import ArrayImages, member_shape, open_images
from evaluator.image_selection import spread
from evaluator.image_stream import FolderImages
from evaluator.provenance import image_facts
from storage.files import file_sha256
from tests.evaluator.toy import MemoryImages, png, tensor, toy_images, write_folder, write_tars

PIXELS = toy_images(7)


def everything(stream, batch_size=3):
    batches = list(stream.batches(batch_size))
    return torch.cat([b.images for b in batches]), torch.cat([b.positions for b in batches])


def forms(folder):
    """The same seven images in every kind of container."""
    np.savez(folder / "stored.npz", PIXELS, np.arange(7))
    np.savez_compressed(folder / "packed.npz", other=np.zeros(5), arr_0=PIXELS)
    np.save(folder / "plain.npy", PIXELS)
    return {
        "folder": open_images(write_folder(folder / "png", PIXELS)),
        "npz": open_images(folder / "stored.npz"),
        "compressed": open_images(folder / "packed.npz"),
        "npy": open_images(str(folder / "plain.npy")),
        "tars": open_images(write_tars(folder / "tars", PIXELS)),
        "folder of tars": open_images(folder / "tars"),
        "memory": MemoryImages(tensor(PIXELS)),
    }


def test_every_container_gives_the_same_images_in_the_same_order(tmp_path):
    for name, stream in forms(tmp_path).items():
        assert (stream.count, tuple(stream.size)) == (7, (16, 16)), name
        found, positions = everything(stream)
        assert torch.equal(found, tensor(PIXELS)), name
        assert found.dtype == torch.uint8 and positions.tolist() == list(range(7)), name


@pytest.mark.parametrize("processes", [2, 3, 9])
def test_processes_share_all_images_without_overlap(tmp_path, monkeypatch, processes):
    for name, stream in forms(tmp_path).items():
        seen, pixels = [], []
        monkeypatch.setattr(images_module.distributed, "world_size", lambda: processes)
        for rank in range(processes):
            monkeypatch.setattr(images_module.distributed, "rank", lambda rank=rank: rank)
            for batch in stream.batches(2):
                seen += batch.positions.tolist()
                pixels.append(batch.images)
        assert seen == list(range(7)) and torch.equal(torch.cat(pixels), tensor(PIXELS)), name


def test_positions_may_have_gaps(tmp_path):
    for name, stream in forms(tmp_path).items():
        if name != "iterator":
            batch = next(stream.batches(5, range(1, 7, 2)))
            assert batch.positions.tolist() == [1, 3, 5] and torch.equal(
                batch.images, tensor(PIXELS)[1::2]
            ), name


def test_arrays_are_streamed_and_not_loaded(tmp_path, monkeypatch):
    path = tmp_path / "large.npz"
    np.savez(path, arr_0=PIXELS, mu=np.zeros(3), sigma=np.zeros((3, 3)), arr_1=np.arange(7))
    read = []
    original = image_files.ArrayFile.read
    monkeypatch.setattr(
        image_files.ArrayFile, "read", lambda self, key: read.append(key) or original(self, key)
    )
    stream = ArrayImages(path)
    everything(stream)
    assert read == ["arr_1"] and stream.has_statistics and stream.labels.tolist() == list(range(7))
    assert member_shape(path, "sigma") == (3, 3) and member_shape(path, "absent") is None


def test_fewer_images_are_spread_evenly(tmp_path):
    for name, stream in forms(tmp_path).items():
        assert spread(stream, None) is spread(stream, 7) is spread(stream, 100) is stream
        some = spread(stream, 4)
        found, positions = everything(some)
        assert torch.equal(found, tensor(PIXELS)[[0, 1, 3, 5]]), name
        assert (some.count, positions.tolist()) == (4, [0, 1, 2, 3])
        assert image_facts(some)["selection"] == {"of": 7, "chosen": "evenly spaced"}
        assert some.digest() != stream.digest() and "selection" not in image_facts(stream)
        if stream.labels is not None:
            assert some.labels.tolist() == stream.labels[[0, 1, 3, 5]].tolist()
        with pytest.raises(ValueError, match="number of images 0 must be at least 1"):
            spread(stream, 0)
    with pytest.raises(ValueError, match="batch_size=0"):
        next(stream.batches(0))


def test_images_in_the_order_of_their_classes_keep_all_classes(tmp_path):
    for name in "abcde":
        write_folder(tmp_path / name, PIXELS)
    some = spread(open_images(tmp_path), 10)
    assert np.unique(some.labels, return_counts=True)[1].tolist() == [2] * 5


def test_numbers_without_leading_zeros_count_as_numbers(tmp_path):
    for i in (10, 2, 1):
        (tmp_path / f"{i}.png").write_bytes(png(PIXELS[i % 7]))
    assert FolderImages(tmp_path).names == ["1.png", "2.png", "10.png"]
    (tmp_path / "a.png").write_bytes(png(PIXELS[0]))
    assert FolderImages(tmp_path).names == ["1.png", "10.png", "2.png", "a.png"]


def test_class_folders_are_labels_and_hidden_files_are_left_out(tmp_path):
    write_folder(tmp_path / "b", PIXELS[:2])
    write_folder(tmp_path / "a" / "deep", PIXELS[2:5])
    write_folder(tmp_path / ".hidden", PIXELS)
    (tmp_path / "a" / "._0.png").write_bytes(b"resource fork")
    stream = open_images(tmp_path)
    assert stream.count == 5 and stream.labels.tolist() == [0, 0, 0, 1, 1]
    assert open_images(write_tars(tmp_path / "tars", PIXELS, labels=True)).labels.tolist() == [
        0,
        0,
        0,
        1,
        1,
        1,
        2,
    ]
    assert open_images(tmp_path / "tars" / "1.tar").count == 3


def test_labels_are_those_of_training(tmp_path):
    write_folder(tmp_path / "a" / "deep", PIXELS[:2])
    write_folder(tmp_path / "a" / "other", PIXELS[2:3])
    write_folder(tmp_path / "a b", PIXELS[3:])
    assert open_images(tmp_path).labels.tolist() == [
        1,
        1,
        1,
        1,
        0,
        0,
        0,
    ]  # sorted by path: "a b/" is before "a/"
    (tmp_path / "cover.png").write_bytes(png(PIXELS[0]))
    assert open_images(tmp_path).labels is None and open_images(tmp_path).count == 8


def test_what_is_left_out_is_said_and_kept(tmp_path, capsys):
    write_folder(tmp_path / "a", PIXELS)
    (tmp_path / "a" / "x.dng").touch()
    (tmp_path / "a" / "\u00b2.png").write_bytes(png(PIXELS[0]))  # a digit, but no number
    stream = open_images(tmp_path / "a")
    assert stream.count == 8 and "1 left out, not an image by its suffix: x.dng" in capsys.readouterr().err
    assert image_facts(stream)["left_out"] == {"not an image by its suffix": [1, ["x.dng"]]}


def test_lossy_files_are_counted_and_transparency_shows_white(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.JPEG", format="JPEG")
    Image.fromarray(PIXELS[1]).save(tmp_path / "b.webp")
    Image.fromarray(PIXELS[2]).convert("L").save(tmp_path / "c.png")
    Image.new("RGBA", (16, 16), (9, 9, 9, 0)).save(tmp_path / "d.png")
    stream = open_images(tmp_path)
    found = everything(stream)[0]
    assert stream.lossy == 2 and (found[3] == 255).all()
    assert torch.equal(found[2, 0], found[2, 1])


def test_transforms_apply_to_files_and_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", PIXELS)
    for path in (tmp_path / "a.npz", write_folder(tmp_path / "png", PIXELS)):
        stream = open_images(path, transform=lambda image: image.crop((2, 3, 10, 9)))
        assert tuple(stream.size) == (6, 8)
        assert torch.equal(everything(stream)[0], tensor(PIXELS)[:, :, 3:9, 2:10])


def test_images_of_several_sizes_are_refused_unless_cropped(tmp_path):
    write_folder(tmp_path / "a", PIXELS)
    (tmp_path / "a" / "odd.png").write_bytes(png(PIXELS[0][:8]))
    stream = open_images(tmp_path / "a")
    with pytest.raises(ValueError, match=r"odd.png has 8 x 16 pixels .*, others of .* 16 x 16"):
        everything(stream)
    assert everything(open_images(tmp_path / "a", transform=lambda i: i.resize((4, 4))))[0].shape == (
        8,
        3,
        4,
        4,
    )


def test_broken_images_are_errors_that_name_them(tmp_path):
    folder = write_folder(tmp_path / "a", PIXELS)
    (folder / "000004.png").write_bytes(png(PIXELS[4])[:60])
    with pytest.raises(ValueError, match=r"000004.png cannot be read"):
        everything(open_images(folder))
    (folder / "000000.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"000000.png cannot be read: not a readable image"):
        open_images(folder)


def test_broken_shards_are_errors(tmp_path):
    write_tars(tmp_path, PIXELS)
    with pytest.raises(FileNotFoundError, match="2.tar does not exist"):
        open_images(str(tmp_path / "{0..3}.tar"))
    with pytest.raises(ValueError, match="braces"):
        open_images(str(tmp_path / "{0..1.tar"))
    content = (tmp_path / "1.tar").read_bytes()
    for length, message in ((700, "cut short"), (1536, "end mark"), (2200, "cut short")):
        (tmp_path / "1.tar").write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"1.tar is.*{message}"):
            open_images(str(tmp_path / "{0..1}.tar"))
    (tmp_path / "1.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match="1.tar is not an uncompressed tar"):
        open_images(str(tmp_path / "{0..1}.tar"))


@pytest.mark.parametrize(
    "array, message",
    [
        (PIXELS.astype(np.float32), "float32 .* expected uint8"),
        (PIXELS.transpose(0, 3, 1, 2), "7, 3, 16, 16"),
        (np.asfortranarray(PIXELS), "Fortran order"),
        (PIXELS[:0], r"\[0, 16, 16, 3\]"),
        (np.array([{}], dtype=object), "Python objects"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, message):
    np.savez(tmp_path / "a.npz", arr_0=array)
    with pytest.raises(ValueError, match=message):
        open_images(tmp_path / "a.npz")


def test_damaged_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", pixels=PIXELS)
    with pytest.raises(ValueError, match="holds no array arr_0, only pixels"):
        open_images(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:500])
    with pytest.raises(ValueError, match="b.npz cannot be read"):
        open_images(tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", PIXELS)
    (tmp_path / "c.npy").write_bytes((tmp_path / "c.npy").read_bytes()[:-5])
    with pytest.raises(ValueError, match="cut short: image 6 of 7"):
        everything(open_images(tmp_path / "c.npy"))


def test_headers_of_version_two_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        file = io.BytesIO()
        np.lib.format.write_array(file, PIXELS, version=(2, 0))
        archive.writestr("arr_0.npy", file.getvalue())
    assert torch.equal(everything(open_images(tmp_path / "a.npz"))[0], tensor(PIXELS))


def test_sample_folders_are_taken_without_their_contact_sheet(tmp_path):
    folder = write_folder(tmp_path / "s", PIXELS)
    (folder / "samples.png").write_bytes(png(PIXELS[0][:4]))
    (folder / "samples.json").write_text(json.dumps({"num_samples": 7}))
    assert isinstance(open_images(folder), FolderImages) and open_images(folder).count == 7
    np.savez(folder / "samples.npz", arr_0=PIXELS[:5], labels=np.arange(5) % 2)
    assert open_images(folder).count == 5 and open_images(folder).labels.tolist() == [0, 1, 0, 1, 0]
    (folder / "unfinished.part").mkdir()
    with pytest.raises(ValueError, match="still being made"):
        open_images(folder)


def test_pairs_of_pictures_and_other_paths_are_refused(tmp_path):
    folder = write_folder(tmp_path / "r", PIXELS)
    (folder / "reconstructions.json").write_text("{}")
    with pytest.raises(ValueError, match="beside their reconstructions"):
        open_images(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        open_images(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere do not exist"):
        open_images(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match="no known kind"):
        open_images(tmp_path / "a.txt")


def test_digests_tell_contents_apart(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, again = forms(tmp_path / "a"), forms(tmp_path / "b")
    for name in ("folder", "npz", "tars", "memory"):
        assert first[name].digest() == again[name].digest(), name
    assert len({s.digest() for s in first.values()}) >= 5
    np.savez(tmp_path / "b" / "stored.npz", PIXELS[::-1])
    assert open_images(tmp_path / "b" / "stored.npz").digest() != first["npz"].digest()
    assert file_sha256(tmp_path / "a" / "plain.npy") == file_sha256(tmp_path / "b" / "plain.npy")


def _list(rank: int, pattern: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    real, read = image_files.read_samples, []
    image_files.read_samples = lambda path: read.append(path) or real(path)
    stream = open_images(pattern)
    images = [image for batch in stream.batches(2) for image in batch.images]
    Path(folder, f"{rank}").write_text(
        json.dumps([len(read), stream.count, stream.labels.tolist(), len(images)])
    )
    torch.distributed.destroy_process_group()


def test_one_process_reads_the_headers_of_shards_for_all(tmp_path):
    pattern = write_tars(tmp_path / "tars", PIXELS, labels=True)
    arguments = (pattern, str(tmp_path))
    torch.multiprocessing.start_processes(_list, arguments, nprocs=2, start_method="fork")
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert (
        (first[0], second[0]) == (2, 0)
        and first[1:3] == second[1:3]
        and first[3] + second[3] == first[1] == 7
    )
