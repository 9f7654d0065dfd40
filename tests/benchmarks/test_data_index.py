"""What `benchmarks/data_index.py` measures: an index costs a worker no memory of its own."""

from benchmarks import data_index
from benchmarks.data_index import all_at_once, in_worker, two_levels, write_index
from data.sample_index import SampleIndex

SAMPLES = 2_000_000


def test_a_worker_holds_nothing_per_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(data_index, "LOOKS", 20_000)
    write_index(tmp_path / "index", SAMPLES, shards=2_000)
    index = SampleIndex(tmp_path / "index", "made up")
    mapped, _ = in_worker("spawn", index, two_levels)
    permuted, _ = in_worker("spawn", index, all_at_once)
    assert mapped < SAMPLES * 2  # windows of 32,000 samples, and what the interpreter takes
    assert SAMPLES * 3 < permuted < SAMPLES * 6  # the measure sees 4 bytes per sample
