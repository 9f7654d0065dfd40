"""ImageNet in small, in every form that people have it: three classes, and the oddities of the real one."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet
from scipy.io import savemat

# The devkit numbers them in another order than that of the sorted synsets.
IDS = {"n01440764": 3, "n01443537": 1, "n02105855": 2}
SYNSETS = sorted(IDS)
NAMES = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish", "n02105855": "Shetland sheepdog"}
PER_CLASS, VALIDATION = 5, 6
PNG_NAMED_JPEG, CMYK = "n02105855_2933", "n01440764_4"


def picture(value: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 255, (9 + value % 4, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def train_images() -> dict[str, bytes]:
    """{"n01440764/n01440764_0": content}."""
    found = {}
    for label, synset in enumerate(SYNSETS):
        for number in range(PER_CLASS):
            name = f"{synset}_{2933 if synset == 'n02105855' and number == 2 else number}"
            kind = "PNG" if name == PNG_NAMED_JPEG else "JPEG"
            found[f"{synset}/{name}"] = picture(10 * label + number, kind, "CMYK" if name == CMYK else "RGB")
    return found


def validation_images() -> dict[str, tuple[bytes, str]]:
    """{"ILSVRC2012_val_00000001": (content, synset)}."""
    order = [2, 0, 1, 1, 2, 0]
    return {f"ILSVRC2012_val_{i + 1:08d}": (picture(100 + i), SYNSETS[order[i]]) for i in range(VALIDATION)}


def expected(split: str) -> dict[bytes, int]:
    """{content: label}."""
    if split == "train":
        return {content: SYNSETS.index(name.split("/")[0]) for name, content in train_images().items()}
    return {content: SYNSETS.index(synset) for content, synset in validation_images().values()}


def packed(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def class_archives() -> dict[str, bytes]:
    return {
        f"{synset}.tar": packed(
            {f"{name.split('/')[1]}.JPEG": c for name, c in train_images().items() if name.startswith(synset)}
        )
        for synset in SYNSETS
    }


def meta(first_id: object = None) -> bytes:
    """meta.mat with the three classes, and a group of them; `first_id` in place of the id of the first class."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(IDS[s], s, NAMES[s], "...", 0) for s in sorted(SYNSETS, key=IDS.get)] + [
        (4, "n00001740", "thing", "", 3)
    ]
    if first_id is not None:
        rows[0] = (first_id, *rows[0][1:])
    file = io.BytesIO()
    savemat(file, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    return file.getvalue()


def ground_truth() -> bytes:
    return "".join(f"{IDS[synset]}\n" for _, synset in validation_images().values()).encode()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def archives(folder: Path) -> Path:
    """As image-net.org serves them."""
    kit = {
        f"ILSVRC2012_devkit_t12/data/{TRUTH}": ground_truth(),
        "ILSVRC2012_devkit_t12/data/meta.mat": meta(),
    }
    flat = {f"{name}.JPEG": content for name, (content, _) in validation_images().items()}
    return write(
        folder,
        {
            "ILSVRC2012_img_train.tar": packed(class_archives()),
            "ILSVRC2012_img_val.tar": packed(flat),
            "ILSVRC2012_devkit_t12.tar.gz": gzip.compress(packed(kit)),
        },
    )


def inner_archives(folder: Path) -> Path:
    """The training archive unpacked once; labels by a list of synsets, one per validation image."""
    lines = "".join(f"{synset}\n" for _, synset in validation_images().values())
    flat = {f"val/{name}.JPEG": content for name, (content, _) in validation_images().items()}
    inner = {f"train/{name}": content for name, content in class_archives().items()}
    return write(folder, inner | flat | {"imagenet_2012_validation_synset_labels.txt": lines.encode()})


def _train_folders(prefix: str) -> dict[str, bytes]:
    return {f"{prefix}/{name}.JPEG": content for name, content in train_images().items()}


def kaggle(folder: Path) -> Path:
    """As Kaggle's archive unpacks; ImageSets has numbers that are no labels."""
    solution = "ImageId,PredictionString\n"
    for name, (_, synset) in validation_images().items():
        solution += f"{name},{synset} 1 2 3 4 {synset} 5 6 7 8 \n"
    base = "ILSVRC/Data/CLS-LOC"
    flat = {f"{base}/val/{name}.JPEG": content for name, (content, _) in validation_images().items()}
    numbers = "".join(f"{name} {i + 1}\n" for i, name in enumerate(validation_images()))
    others = {
        "LOC_val_solution.csv": solution.encode(),
        "LOC_synset_mapping.txt": "".join(f"{s} {NAMES[s]}\n" for s in SYNSETS).encode(),
        "ILSVRC/ImageSets/CLS-LOC/val.txt": numbers.encode(),
        f"{base}/test/ILSVRC2012_test_00000001.JPEG": picture(99),
    }
    return write(folder, _train_folders(f"{base}/train") | flat | others)


def flat_validation(folder: Path) -> Path:
    """Unpacked, with the devkit unpacked beside it."""
    flat = {f"val/{name}.JPEG": content for name, (content, _) in validation_images().items()}
    kit = {
        f"ILSVRC2012_devkit_t12/data/{TRUTH}": ground_truth(),
        "ILSVRC2012_devkit_t12/data/meta.mat": meta(),
    }
    return write(folder, _train_folders("train") | flat | kit)


def sorted_validation(folder: Path) -> Path:
    """Validation images moved into class folders."""
    files = {f"val/{synset}/{name}.JPEG": content for name, (content, synset) in validation_images().items()}
    return write(folder, _train_folders("train") | files)


def hub_parquet(folder: Path) -> Path:
    """As the Hub serves it; images are mixed, and files are named with their synset."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    names = [NAMES[synset] for synset in SYNSETS]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    train = [
        (f"{name.split('/')[1]}_{name.split('/')[0]}.JPEG", content, SYNSETS.index(name.split("/")[0]))
        for name, content in train_images().items()
    ]
    validation = [
        (f"{name}_{synset}.JPEG", content, SYNSETS.index(synset))
        for name, (content, synset) in validation_images().items()
    ]
    (folder / "data").mkdir(parents=True)
    for split, rows, files in (("train", train, 2), ("validation", validation, 1)):
        rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
        for number in range(files):
            part = rows[number::files]
            table = pa.table(
                {
                    "image": pa.array([{"bytes": c, "path": n} for n, c, _ in part], kind),
                    "label": pa.array([label for *_, label in part], pa.int64()),
                }
            )
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
            path = folder / f"data/{split}-{number:05d}-of-{files:05d}.parquet"
            parquet.write_table(table, path, row_group_size=2)
    return folder


LAYOUTS = [archives, inner_archives, kaggle, flat_validation, sorted_validation, hub_parquet]
