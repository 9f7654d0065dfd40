import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from common import cores
from common.config import REPOSITORY
from common.images import to_float
from data import ImageFolder, TokenMemmap
from data.still import loading_options
from data.token_memmap import TokenWriter
from jobs.options.pretokenize import PretokenizeOptions
from jobs.pretokenize import pretokenize
from modeling.pipeline import find_classes, load_tokenizer
from storage.weights import weight_hash


def run(tokenizer, output, **options):
    options = {"num_workers": 0, "batch_size": 3, **options}
    pretokenize(PretokenizeOptions(tokenizer=str(tokenizer), output=str(output), **options))
    return TokenMemmap(path=output, random_crop=False)


def expected_tokens(tokenizer_run, folder, flip=False):
    source = ImageFolder(path=folder, image_size=16, resize="adm")
    images = to_float(torch.stack([source.load(i, np.random.default_rng(0))[0] for i in range(len(source))]))
    return load_tokenizer(tokenizer_run).encode(images.flip(-1) if flip else images)


def all_tokens(source, crop=0):
    # The generators tell the source which crop to take.
    class Fixed:
        def integers(self, high):
            return crop

    source.random_crop = True
    return source.load_many(range(len(source)), [Fixed()] * len(source))


@pytest.fixture
def data(image_folder):
    return {"name": "image_folder", "path": str(image_folder), "random_flip": True}


def test_file_holds_the_tokens_and_says_whose_they_are(
    tiny_tokenizer_run, image_folder, data, tmp_path, capsys
):
    tokens = run(tiny_tokenizer_run, tmp_path / "a.tokens", data=data)
    assert torch.equal(all_tokens(tokens), expected_tokens(tiny_tokenizer_run, image_folder))
    assert tokens.labels.tolist() == [0, 0, 0, 1, 1, 1, 1] and tokens.class_names == ["apple", "blue"]
    header = tokens.header
    assert header.weight_hash == weight_hash(load_tokenizer(tiny_tokenizer_run))
    assert (header.codebook_size, header.num_tokens, header.crops, header.image_size) == (48, 6, 1, 16)
    printed = capsys.readouterr().out
    assert (
        "7 images x 1 crops x 6 tokens" in printed and "codebook usage" in printed and "perplexity" in printed
    )
    assert "34 bits" in printed  # 6 log2(48) = 33.5


def test_names_of_classes_travel_with_the_tokens_and_what_is_left_out_is_said(
    tiny_tokenizer_run, image_folder, tmp_path, capsys
):
    picture = sorted((image_folder / "blue").iterdir())[0]
    for number in range(12):
        (tmp_path / "in" / str(number) / ".thumbnails").mkdir(parents=True)
        shutil.copy(picture, tmp_path / "in" / str(number))
        shutil.copy(picture, tmp_path / "in" / str(number) / ".thumbnails")
    data = {"name": "image_folder", "path": str(tmp_path / "in")}
    tokens = run(tiny_tokenizer_run, tmp_path / "a.tokens", data=data)
    said = capsys.readouterr().err
    assert "12 left out, hidden" in said and "label 2 is folder 10" in said
    assert len(tokens) == 12 and tokens.class_names == sorted(map(str, range(12)))
    assert find_classes(["2"], tokens.class_names) == [4]
    with pytest.raises(ValueError, match="class 2 is ambiguous"):
        find_classes([2], tokens.class_names)


def test_flip_keeps_the_mirror_image_as_second_crop(tiny_tokenizer_run, image_folder, data, tmp_path):
    tokens = run(tiny_tokenizer_run, tmp_path / "a.tokens", data=data, crops="flip")
    assert torch.equal(all_tokens(tokens), expected_tokens(tiny_tokenizer_run, image_folder))
    assert torch.equal(all_tokens(tokens, 1), expected_tokens(tiny_tokenizer_run, image_folder, flip=True))


def test_ten_crop_sees_larger_images(tiny_tokenizer_run, image_folder, data, tmp_path):
    data = {**data, "resize_shorter_edge": 17}
    tokens = run(
        tiny_tokenizer_run, tmp_path / "a.tokens", data=data | {"resize": "shorter_edge"}, crops="ten_crop"
    )
    source = ImageFolder(path=image_folder, image_size=17)
    image = to_float(source.load(2, np.random.default_rng(0))[0])
    crop = load_tokenizer(tiny_tokenizer_run).encode(image[None, :, 1:, :16].flip(-1))
    assert tokens.header.crops == 10 and torch.equal(all_tokens(tokens, 7)[2], crop[0])


def test_without_data_section_the_runs_own_images_are_taken(tiny_tokenizer_run, tmp_path):
    tokens = run(tiny_tokenizer_run, tmp_path / "a.tokens", split="validation", batch_size=64)
    assert 300 < len(tokens) < 600 and "Flags" in tokens.class_names


def test_doing_it_again_does_nothing_and_other_tokens_are_refused(
    tiny_tokenizer_run, image_folder, data, tmp_path, capsys
):
    path = tmp_path / "a.tokens"
    run(tiny_tokenizer_run, path, data=data)
    before = path.stat().st_mtime_ns
    moved = shutil.copytree(tiny_tokenizer_run, tmp_path / "moved")
    run(moved, path, data=data)
    assert path.stat().st_mtime_ns == before and "nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match="crops 1 instead of 2"):
        run(tiny_tokenizer_run, path, data=data, crops="flip")
    with pytest.raises(ValueError, match=r"other tokens \(data.resize was None, is now bilinear\)"):
        run(tiny_tokenizer_run, path, data=data | {"resize": "bilinear"})
    assert run(tiny_tokenizer_run, path, data=data, crops="flip", overwrite=True).header.crops == 2
    renamed = shutil.copytree(image_folder, tmp_path / "images")
    shutil.move(next((renamed / "apple").iterdir()), renamed / "blue" / "more.png")
    with pytest.raises(ValueError, match="other images"):
        run(tiny_tokenizer_run, path, data={**data, "path": str(renamed)}, crops="flip")


def test_interrupted_job_goes_on_where_it_stopped(
    tiny_tokenizer_run, image_folder, data, tmp_path, monkeypatch
):
    path, done = tmp_path / "a.tokens", []
    write = TokenWriter.write

    def fail_at_second(self, rows, tokens, labels):
        if done and fail:
            raise OSError("disk full")
        write(self, rows, tokens, labels)
        done.extend(rows)

    monkeypatch.setattr(TokenWriter, "write", fail_at_second)
    fail = True
    with pytest.raises(OSError, match="disk full"):
        run(tiny_tokenizer_run, path, data=data)
    assert not path.exists()
    fail = False
    # Neither other pixels nor other images are mixed with what is there.
    with pytest.raises(
        ValueError, match=r"begun with other settings \(data.resize was None, is now bilinear\)"
    ):
        run(tiny_tokenizer_run, path, data=data | {"resize": "bilinear"})
    other = shutil.copytree(image_folder, tmp_path / "images")
    shutil.move(next((other / "apple").iterdir()), other / "blue" / "more.png")
    with pytest.raises(ValueError, match=r"begun with other settings \(other images\)"):
        run(tiny_tokenizer_run, path, data=data | {"path": str(other)})
    # The tokenizer and the images may have moved.
    moved = shutil.copytree(image_folder, tmp_path / "moved")
    tokenizer = shutil.copytree(tiny_tokenizer_run, tmp_path / "tokenizer")
    tokens = run(tokenizer, path, data=data | {"path": str(moved)})
    assert sorted(done) == list(range(7)) and done[:3] == [0, 1, 2]  # none of them twice
    assert torch.equal(all_tokens(tokens), expected_tokens(tiny_tokenizer_run, image_folder))


def test_two_processes_write_the_file_that_one_writes(tiny_tokenizer_run, image_folder, data, tmp_path):
    run(tiny_tokenizer_run, tmp_path / "one", data=data)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [
        str(REPOSITORY / "scripts/pretokenize.py"),
        f"tokenizer={tiny_tokenizer_run}",
        "num_workers=0",
    ]
    command += ["data.name=image_folder", f"data.path={image_folder}", "output=two", "batch_size=2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert result.stdout.count("perplexity") == 1


def test_unreadable_images_are_left_out_named_and_stop_the_job_when_many(
    tiny_tokenizer_run, image_folder, data, tmp_path, capsys
):
    folder = shutil.copytree(image_folder, tmp_path / "images")
    broken = sorted((folder / "blue").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:50])
    data = {**data, "path": str(folder)}
    with pytest.raises(ValueError, match=f"1 of 7 images cannot be read, .*{broken.name}"):
        run(tiny_tokenizer_run, tmp_path / "a", data=data)
    tokens = run(tiny_tokenizer_run, tmp_path / "a", data=data, max_skipped=0.5)
    expected = expected_tokens(tiny_tokenizer_run, image_folder)
    assert torch.equal(all_tokens(tokens), expected[[0, 1, 2, 3, 5, 6]])
    printed = capsys.readouterr()
    assert broken.name in printed.err and "1 unreadable ones left out" in printed.out


def test_wrong_input_is_refused_before_work_starts(tiny_tokenizer_run, tiny_generator_run, tmp_path):
    with pytest.raises(ValueError, match="not the folder of a tokenizer"):
        run(tiny_generator_run, tmp_path / "a")
    with pytest.raises(ValueError, match="did you mean 'image_folder'"):
        run(tiny_tokenizer_run, tmp_path / "a", data={"name": "imagefolder"})
    with pytest.raises(ValueError, match="holds no images"):
        run(tiny_tokenizer_run, tmp_path / "a", data={"name": "tokens", "path": "x"})
    (tmp_path / "a").write_text("no tokens")
    with pytest.raises(ValueError, match="not a token file"):
        run(tiny_tokenizer_run, tmp_path / "a", split="validation")


def test_precision_is_part_of_what_tokens_are(tiny_tokenizer_run, data, tmp_path):
    exact = run(tiny_tokenizer_run, tmp_path / "exact.tokens", data=data)
    half = run(tiny_tokenizer_run, tmp_path / "half.tokens", data=data, precision="bfloat16")
    assert (half.header.precision, exact.header.precision) == ("bfloat16", "float32")
    assert half.header.weight_hash == exact.header.weight_hash
    assert (all_tokens(half) == all_tokens(exact)).float().mean() > 0.8
    assert b"precision" not in (tmp_path / "exact.tokens").read_bytes()  # as in older files
    with pytest.raises(ValueError, match="holds other tokens .precision 'bfloat16' instead of 'float32'"):
        run(tiny_tokenizer_run, tmp_path / "half.tokens", data=data)
    TokenWriter.create(tmp_path / "begun.tokens", half.header)  # as an interrupted job leaves it
    with pytest.raises(ValueError, match="was begun with other settings .precision 'bfloat16' instead"):
        run(tiny_tokenizer_run, tmp_path / "begun.tokens", data=data)
    again = run(tiny_tokenizer_run, tmp_path / "begun.tokens", data=data, overwrite=True)
    assert torch.equal(all_tokens(again), all_tokens(exact))


def test_workers_are_chosen_by_the_cores_and_change_nothing(
    tiny_tokenizer_run, data, tmp_path, monkeypatch, capfd
):
    alone = run(tiny_tokenizer_run, tmp_path / "alone.tokens", data=data)
    for number, workers in ((1, 0), (4, 1)):
        monkeypatch.setattr(cores, "cores", lambda number=number: number)
        options = PretokenizeOptions(tokenizer="x", output="x")
        assert options.num_workers == "auto" and loading_options(options)["num_workers"] == workers
        chosen = run(tiny_tokenizer_run, tmp_path / f"{number}.tokens", data=data, num_workers="auto")
        assert torch.equal(all_tokens(alone), all_tokens(chosen))
    monkeypatch.setattr(cores, "cores", lambda: 1)
    run(tiny_tokenizer_run, tmp_path / "many.tokens", data=data, num_workers=2)
    said = capfd.readouterr().err
    assert "num_workers=2 in each of 1 processes is more than the 1 cores" in said
    assert "DataLoader" not in said
