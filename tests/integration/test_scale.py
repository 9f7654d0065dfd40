"""Many images: sampling that is killed goes on to the same bytes, and memory does not grow with their number."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
# A prime: divisible neither by processes nor by batches nor by classes. No process of the test below is left with a
# batch of one image, for which matrix products take another way and may round a pixel differently.
COUNT = 599


def command(
    generator: Path, output: Path, *options: str, launcher: tuple[str, ...] | list[str] = ()
) -> list[str]:
    script = str(ROOT / "sample_imagenet.py")
    options = (f"generator={generator}", f"output={output}", f"num_samples={COUNT}", *options)
    return [sys.executable, *launcher, script, *options]


def run(*arguments, **options) -> None:
    done = subprocess.run(
        command(*arguments, **options), capture_output=True, text=True, timeout=600, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def written(output: Path) -> int:
    """Samples that unfinished work has flagged as done."""
    flags = output / "unfinished.part" / "flags.npy"
    return flags.read_bytes()[-COUNT:].count(1) if flags.is_file() else 0


def kill_at_random(generator: Path, output: Path, *options: str) -> bool:
    """Start sampling and kill it some time after its first sample; whether it had not finished."""
    process = subprocess.Popen(
        command(generator, output, *options),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    deadline, wanted = time.monotonic() + 300, random.randint(1, COUNT - 100)
    while process.poll() is None and written(output) < wanted and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    return process.wait(timeout=60) == -signal.SIGKILL and (output / "unfinished.part").is_dir()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_generator_run):
    """Samples of one process that nobody stopped, batch 16."""
    folder = tmp_path_factory.mktemp("whole")
    run(tiny_generator_run, folder, "batch_size=16")
    return folder


@pytest.mark.slow
def test_killed_twice_and_started_again_the_files_are_the_same(tmp_path, tiny_generator_run, whole):
    kills = [kill_at_random(tiny_generator_run, tmp_path, "batch_size=4") for _ in range(2)]
    assert kills[0], "it had ended before it could be killed"
    run(tiny_generator_run, tmp_path, "batch_size=5")
    assert (tmp_path / "samples.npz").read_bytes() == (whole / "samples.npz").read_bytes()
    # Nor is anything left of what the killed ones were writing.
    assert names(tmp_path) == names(whole)
    for name in names(whole):
        if name.endswith(".png"):
            assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_two_processes_of_batch_three_write_the_bytes_of_one_of_batch_sixteen(
    tmp_path, tiny_generator_run, whole
):
    run(tiny_generator_run, tmp_path, "batch_size=3", "png=false", launcher=TWO)
    assert (tmp_path / "samples.npz").read_bytes() == (whole / "samples.npz").read_bytes()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """Four times as many images: every stage stays within a third of what their pixels alone would take."""
    # Large blocks go back to the system at once, so that the peak is what was needed and not how it was handed out.
    environment = {**ENVIRONMENT, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    counts, reports = (500, 2000), []
    for count in counts:
        options = ["--count", str(count), "--size", "128", "--batch", "16", "--metrics", "fid,sfid,is,kid"]
        done = subprocess.run(
            [
                sys.executable,
                str(ROOT / "benchmarks/scale.py"),
                *options,
                "--json",
                str(tmp_path / "report.json"),
            ],
            capture_output=True,
            text=True,
            timeout=600,
            env=environment,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert "peak MB" in done.stdout
        reports.append(json.loads((tmp_path / "report.json").read_text()))
    few, many = reports
    pixels = (counts[1] - counts[0]) * 128 * 128 * 3 / 1e6
    assert many["npz_bytes"] - few["npz_bytes"] > pixels * 1e6
    assert list(many["stages"]) == list(few["stages"]) and len(few["stages"]) == 3
    for name, stage in many["stages"].items():
        growth = stage["peak_megabytes"] - few["stages"][name]["peak_megabytes"]
        assert growth < pixels / 3, f"{name}: {growth:.0f} MB more for {pixels:.0f} MB of pixels"
    assert few["same_pixels"] and many["same_pixels"]  # in the PNG files and in the NPZ
    assert abs(many["metrics"]["fid_2k"]) < 1e-6
