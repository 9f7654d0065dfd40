"""Memory and time of the index and the order of a large data set.

    python benchmarks/data_index.py
    python benchmarks/data_index.py --samples 50_000_000 --shards 10_000

Places of samples are made up, so that no images are needed: what a data worker holds for itself, per sample, after it
has read the places of 200,000 samples in the order of training. Then headers are read from a real shard of small images
with captions and metadata, from the page cache. Seconds are of one processor, not of the clock.
"""

import io
import multiprocessing
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import argument_parser
from data.order import FullShuffle, Order, WindowShuffle
from data.sample_index import SampleIndex, SampleIndexWriter
from data.tar_index import ShardIndex, make_index

LOOKS = 200_000
WINDOW = 32


def write_index(folder: Path, samples: int, shards: int) -> None:
    """An index of as many samples in every shard, with captions and without labels, as of DataComp."""
    with SampleIndexWriter(folder) as writer:
        for part in np.array_split(np.arange(samples), shards):
            places = np.arange(len(part), dtype=np.int64) * 60_000
            nothing = np.full(len(part), -1, dtype=np.int64)
            sides = nothing.astype(np.int32)
            columns = (nothing.astype("S1"), places, places, nothing, places, sides, sides, sides)
            writer.add(ShardIndex(*columns), 60_000 * len(part))
        writer.finish("made up")


def private_bytes() -> int:
    """Memory that is not of a file. Of a forked process it counts what it shares with its parent, too."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous"))


def look(index: SampleIndex, order_of: Callable[[SampleIndex], Order]) -> tuple[int, float]:
    """(private bytes that came, seconds) while the places of samples are read in order."""
    before, start = private_bytes(), time.process_time()
    order, total = order_of(index), 0
    for position in range(LOOKS):
        sample = order.example(position)
        total += int(index.offsets[sample]) + int(index.caption_sizes[sample]) + index.shard_of(sample)
    return private_bytes() - before, time.process_time() - start


def in_worker(kind: str, index: SampleIndex, order: Callable[[SampleIndex], Order]) -> tuple[int, float]:
    """`look` in a process that is started as data workers are: forked or spawned."""
    with multiprocessing.get_context(kind).Pool(1) as pool:
        return pool.apply(_look, (index, order))


def _look(index: SampleIndex, order: Callable[[SampleIndex], Order]) -> tuple[int, float]:
    return look(index, order)


def two_levels(index: SampleIndex) -> Order:
    """The order of huge sets."""
    return WindowShuffle(index.starts, window=WINDOW, seed=0)


def all_at_once(index: SampleIndex) -> Order:
    """The order of other sets."""
    return FullShuffle(index.facts.count, seed=0)


def write_shard(path: Path, samples: int, image_bytes: int) -> None:
    """Samples of an image that is none, a caption and some metadata."""
    record = b'{"original_width": 640, "original_height": 480, "uid": "0123456789abcdef"}'
    with tarfile.open(path, "w") as tar:
        for number in range(samples):
            for ending, content in (("jpg", bytes(image_bytes)), ("txt", b"A caption."), ("json", record)):
                member = tarfile.TarInfo(f"{number:09d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def measure_memory(samples: int, shards: int, folder: Path) -> dict[str, tuple[int, float]]:
    """(private bytes, seconds per look) of a worker of each kind with each order; prints what the index takes."""
    write_index(folder, samples, shards)
    size = sum(file.stat().st_size for file in folder.iterdir())
    start = time.process_time()
    index = SampleIndex(folder, "made up")
    opened = 1e3 * (time.process_time() - start)
    print(
        f"{samples} samples in {shards} shards: {size / samples:.1f} bytes each on the disk, opened in {opened:.1f} ms"
    )
    orders = {"two levels": two_levels, "all at once": all_at_once}
    return {
        f"{title}, {kind} worker": in_worker(kind, index, order)
        for title, order in orders.items()
        for kind in ("fork", "spawn")
    }


def measure_headers(shard: Path, samples: int = 5_000) -> None:
    """Print how fast the headers of a shard are read."""
    write_shard(shard, samples, image_bytes=40_000)
    calls, real = [0], os.pread
    os.pread = lambda *arguments: calls.__setitem__(0, calls[0] + 1) or real(*arguments)
    start = time.process_time()
    make_index(shard)
    seconds = time.process_time() - start
    print(f"headers of a shard of {samples} samples ({shard.stat().st_size / 1e6:.0f} MB): {seconds:.2f} s")
    print(f"  {samples / seconds:.0f} samples per second, {calls[0]} reads for {3 * samples} members")


def main() -> None:
    """Print the measurements."""
    parser = argument_parser(__doc__)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=2_000)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one by default")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        few = measure_memory(settings.samples // 10, settings.shards // 10, Path(folder) / "few")
        many = measure_memory(settings.samples, settings.shards, Path(folder) / "many")
        for name, (private, seconds) in many.items():
            growth = (private - few[name][0]) / (settings.samples - settings.samples // 10)
            print(f"{name}: {growth:.2f} private bytes per sample, {1e6 * seconds / LOOKS:.1f} us per look")
        measure_headers(Path(folder) / "a.tar")


if __name__ == "__main__":
    main()
