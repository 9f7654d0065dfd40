"""Training, tokenizing, reconstruction and evaluation see the same images in the same container, however odd it is."""

import gzip
import io
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.loaders import eval_loader
from evaluator.image_files import open_images as measured_images
from jobs.options.pretokenize import PretokenizeOptions
from jobs.options.reconstruct import ReconstructOptions
from jobs.pretokenize import open_source
from jobs.reconstruct import open_images as reconstructed_images
from training.tokenizer_run import build_images

SIDE = 16


def picture(value: int, ending: str = "png") -> bytes:
    file = io.BytesIO()
    kind = {"jpg": "JPEG", "jfif": "JPEG", "tif": "TIFF", "pgm": "PPM"}.get(ending, ending.upper())
    Image.new("L", (SIDE, SIDE), value).save(file, kind)
    return file.getvalue()


def put(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(value, path.suffix[1:].lower()))


def plain(folder: Path) -> None:
    for value in range(4):
        put(folder / ("cat" if value < 2 else "dog") / f"{value}.png", value)


# Each makes images of the values 0, 1, 2, ... that are to be seen, and others of 200 that are not.
FOLDERS: dict[str, Callable[[Path], None]] = {}


def folder(build: Callable[[Path], None]) -> Callable[[Path], None]:
    FOLDERS[build.__name__] = build
    return build


@folder
def only_classes(place):
    plain(place)


@folder
def hidden_folders(place):
    plain(place)
    for name in ("cat/.ipynb_checkpoints/0.png", "dog/deep/.thumbnails/0.png", ".trash/0.png", ".png/0.png"):
        put(place / name, 200)


@folder
def files_of_systems(place):
    plain(place)
    for name in ("__MACOSX/cat/0.png", "cat/._0.png", "dog/@eaDir/0.png", "lost+found/0.png"):
        put(place / name, 200)
    for name in ("cat/.DS_Store", "dog/Thumbs.db"):
        (place / name).touch()


@folder
def other_suffixes(place):
    for value, ending in enumerate(("png", "bmp", "tif", "tiff", "ppm", "gif", "jfif", "webp", "tga")):
        put(place / "cat" / f"{value}.{ending}", value)


@folder
def upper_case(place):
    for value, ending in enumerate(("PNG", "Jpg", "JPEG", "TIF")):
        put(place / "cat" / f"{value}.{ending}", value)


@folder
def folders_in_folders(place):
    for value, name in enumerate(("a/b/c/0.png", "a/0.png", "a/b/0.png", "b/x.png/0.png")):
        put(place / name, value)


@folder
def links_to_files(place):
    plain(place)
    put(place.parent / "elsewhere" / "4.png", 4)
    (place / "cat" / "link.png").symlink_to(place.parent / "elsewhere" / "4.png")


@folder
def links_to_folders(place):
    plain(place)
    put(place.parent / "elsewhere" / "4.png", 4)
    (place / "owl").symlink_to(place.parent / "elsewhere")


@folder
def circles(place):
    plain(place)
    (place / "cat" / "up").symlink_to(place)
    (place / "dog" / "self").symlink_to(".")


@folder
def links_to_nothing(place):
    plain(place)
    (place / "cat" / "gone.png").symlink_to("nowhere.png")
    (place / "cat" / "self.png").symlink_to("self.png")
    (place / "dog" / "gone").symlink_to("nowhere")


@folder
def pipes(place):
    plain(place)
    os.mkfifo(place / "cat" / "pipe.png")


@folder
def names_that_are_not_text(place):
    for value, name in enumerate(("caf\udce9/\udcff.png", "caf\udce9/a\nb.png", "\u732b 1/'\"\\.png")):
        put(place / name, value)


@folder
def numbers_as_classes(place):
    for value in range(12):
        put(place / str(value) / "a.png", value)


@folder
def classes_that_look_alike(place):
    for value, name in enumerate(("Cat", "cat", "caf\u00e9", "cafe\u0301")):
        put(place / name / "a.png", value)


@folder
def texts_beside_images(place):
    plain(place)
    for name in ("cat/0.txt", "cat/0.json", "labels.csv", "README.md"):
        (place / name).write_text("0")


@folder
def what_is_no_image_by_its_suffix(place):
    plain(place)
    for name in ("cat/a.dng", "cat/b.png.bak", "dog/c", "dog/d.jpg~"):
        (place / name).write_bytes(picture(200))


def member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def write(path: Path, names: dict[str, int | bytes], mode: str = "w", **options) -> Path:
    """A shard of images of the values, each with a label, and of other members."""
    with tarfile.open(path, mode, errors="surrogateescape", **options) as tar:
        for name, value in names.items():
            if isinstance(value, bytes):
                member(tar, name, value)
                continue
            folder, _, base = name.rpartition("/")
            stem, _, ending = base.partition(".")
            member(tar, name, picture(value, ending.lower() if ending.lower() in ("jpg", "tif") else "png"))
            member(tar, f"{folder}/{stem}.cls" if folder else f"{stem}.cls", b"%d" % (value % 2))
    return path


FOUR = {f"{value}.png": value for value in range(4)}
LONG = "a" * 90 + "/" + "b" * 120
TARS: dict[str, dict[str, int | bytes]] = {
    "plain": FOUR,
    "dots_in_some_keys": {**FOUR, "2024.05.01_a.png": 200, "2024.05.02_a.png": 200},
    "upper_case_in_a_tar": {"a.PNG": 0, "b.JPG": 1, "c.Tif": 2},
    "dot_slash": {f"./{name}": value for name, value in FOUR.items()},
    "absolute_and_up": {"/a/0.png": 0, "../0.png": 1, "a/../b/0.png": 2},
    "one_name_in_several_folders": {"a/0.png": 0, "b/0.png": 1, "0.png": 2},
    "apple_doubles": {
        **FOUR,
        "._0.png": b"fork",
        "__MACOSX/._0.png": b"fork",
        "__MACOSX/1.png": picture(200),
    },
    "hidden_in_a_tar": {**FOUR, ".0.png": picture(200), "a/.thumbs/0.png": picture(200)},
    "an_archive_of_a_hidden_folder": {f".cache/x/{name}": value for name, value in FOUR.items()},
    "two_images_of_a_sample": {"0.jpg": 0, "0.png": picture(200), "1.tif": picture(200), "1.png": 1},
    "fields_in_no_order": {
        "1.cls": b"1",
        "0.png": picture(0),
        "2.png": 2,
        "0.cls": b"0",
        "1.png": picture(1),
    },
    "other_fields": {
        **FOUR,
        "0.seg.npy": b"x",
        "0.depth.png": picture(200),
        "0.txt": b"text",
        "x.json": b"{}",
    },
    "labels_in_json": {"0.png": picture(0), "0.json": b'{"label": 1.0}', "1.png": 1},
    "long_names": {f"{LONG}{name}": value for name, value in FOUR.items()},
    "not_text": {"caf\udce9/\udcff.png": 0, "a\nb.png": 1, "\u732b.png": 2},
}


def tar(place: Path, name: str) -> str:
    return str(write(place / "s.tar", TARS[name]))


def pax(place: Path, name: str) -> str:
    return str(write(place / "s.tar", TARS[name], format=tarfile.PAX_FORMAT))


def updated(place: Path, _: str) -> str:
    write(place / "s.tar", {**FOUR, "1.png": 200})
    return str(write(place / "s.tar", {"1.png": 1}, mode="a"))


def joined(place: Path, _: str) -> str:
    parts = [write(place / "a", FOUR), write(place / "b", {"x.png": 200})]
    (place / "s.tar").write_bytes(b"".join(part.read_bytes() for part in parts))
    return str(place / "s.tar")


def with_links(place: Path, _: str) -> str:
    write(place / "s.tar", FOUR)
    with tarfile.open(place / "s.tar", "a") as tar:
        for number, kind in enumerate((tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE)):
            entry = tarfile.TarInfo(f"link{number}.png")
            entry.type, entry.linkname = kind, "0.png"
            tar.addfile(entry)
    return str(place / "s.tar")


def pattern(place: Path, _: str) -> str:
    for number in range(2):
        write(place / f"s-{number}.tar", {f"{v}.png": v for v in range(2 * number, 2 * number + 2)})
    return str(place / "s-{0..1}.tar")


def folder_of_shards(place: Path, name: str) -> str:
    pattern(place, name)
    (place / "._s-0.tar").touch()
    return str(place)


CONTAINERS = {
    **dict.fromkeys(FOLDERS, ("image_folder", None)),
    **dict.fromkeys(TARS, ("webdataset", tar)),
    **{f"{name}_pax": ("webdataset", pax) for name in ("long_names", "not_text")},
    **{
        make.__name__: ("webdataset", make)
        for make in (updated, joined, with_links, pattern, folder_of_shards)
    },
}


def programs(kind: str, path: str, tokenizer: Path) -> dict[str, Callable[[], list[int]]]:
    """What each program reads at a path: the values of the images, sorted."""
    section = {"name": kind, "path": path}

    def values(images) -> list[int]:
        return sorted(round(float(np.asarray(image).mean())) for image in images)

    def training() -> list[int]:
        source = build_images("data.train", {**section, "image_size": SIDE}, SIDE)
        batches = list(eval_loader(source, batch_size=4))
        assert not any(batch["skipped"] for batch in batches)
        return values(image for batch in batches for image in batch["images"])

    def tokenizing() -> list[int]:
        options = PretokenizeOptions(tokenizer=str(tokenizer), output="unused", data=section)
        source = open_source(options, SIDE)
        return values(source.load(index, np.random.default_rng(0))[0] for index in range(len(source)))

    def reconstruction() -> list[int]:
        options = ReconstructOptions(tokenizer=str(tokenizer), output="unused", input=path)
        total, batches = reconstructed_images(options, {}, SIDE)
        found = values(image for batch in batches for image in batch.images)
        assert len(found) == total
        return found

    def evaluation() -> list[int]:
        stream = measured_images(path)
        return values(stream.images(range(stream.count)))

    return {call.__name__: call for call in (training, tokenizing, reconstruction, evaluation)}


def said(text: str) -> set[str]:
    """What was left out by the warnings of a program: count, reason and names."""
    return set(re.findall(r"\d+ left out, .*", text))


def test_there_are_at_least_thirty_containers():
    assert len(CONTAINERS) >= 30


@pytest.mark.parametrize("name", CONTAINERS)
def test_all_programs_see_the_same_images(name, tmp_path, tiny_tokenizer_run, capsys):
    kind, make = CONTAINERS[name]
    (tmp_path / "set").mkdir()
    if make is None:
        FOLDERS[name](tmp_path / "set")
    path = str(tmp_path / "set") if make is None else make(tmp_path / "set", name.removesuffix("_pax"))
    seen, left_out = {}, {}
    for program, read in programs(kind, path, tiny_tokenizer_run).items():
        capsys.readouterr()
        seen[program] = read()
        left_out[program] = said(capsys.readouterr().err)
    count = len(seen["training"])
    assert count >= 2 and seen == dict.fromkeys(seen, list(range(count)))
    assert left_out == dict.fromkeys(left_out, left_out["training"])


def compressed(place: Path) -> str:
    (place / "s.tar.gz").write_bytes(gzip.compress(write(place / "s.tar", FOUR).read_bytes()))
    return str(place / "s.tar.gz")


def cut_short(place: Path) -> str:
    shard = write(place / "s.tar", FOUR)
    shard.write_bytes(shard.read_bytes()[:2048])
    return str(shard)


def dots_in_all_keys(place: Path) -> str:
    return str(write(place / "s.tar", {f"img_v1.{value}.png": value for value in range(4)}))


def named_fields(place: Path) -> str:
    return str(write(place / "s.tar", {f"sample{value}.input.png": value for value in range(4)}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (compressed, "s.tar.gz is not an uncompressed tar file: it is compressed by gzip"),
        (cut_short, "s.tar is cut short after 2048 bytes"),
        (dots_in_all_keys, "4 left out, a key ends at the first dot of the name.*img_v1.0.png"),
        (named_fields, "4 left out, a key ends at the first dot of the name.*sample0.input.png"),
    ],
)
def test_all_programs_refuse_the_same_containers(make, message, tmp_path, tiny_tokenizer_run):
    path = make(tmp_path)
    for read in programs("webdataset", path, tiny_tokenizer_run).values():
        with pytest.raises(ValueError, match=message):
            read()


def test_what_has_no_label_is_left_out_of_training_only_and_named(tmp_path, tiny_tokenizer_run, capsys):
    plain(tmp_path / "set")
    put(tmp_path / "set" / "cover.png", 4)
    path = write(tmp_path / "s.tar", {**FOUR, "4.png": picture(4), "4.cls": b"3.7"})
    for kind, place in (("image_folder", tmp_path / "set"), ("webdataset", path)):
        read = programs(kind, str(place), tiny_tokenizer_run)
        assert read["evaluation"]() == read["reconstruction"]() == [0, 1, 2, 3, 4]
        assert not said(capsys.readouterr().err)
        source = build_images("data.train", {"name": kind, "path": str(place), "image_size": SIDE}, SIDE)
        shown = [batch["labels"] for batch in eval_loader(source, batch_size=8)]
        assert sum(map(len, shown)) == 4
        assert re.search("1 left out, .*(cover.png|4.cls: '3.7')", capsys.readouterr().err)
