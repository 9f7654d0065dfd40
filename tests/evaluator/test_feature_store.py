import os
import signal

import numpy as np
import pytest
import torch
from torch import multiprocessing

from evaluator.evaluator import Evaluator
from evaluator.feature_store import Keep
from evaluator.metrics import METRICS
from evaluator.reference import open_reference
from tests.evaluator.processes import in_two_processes, needs_fork
from tests.evaluator.toy import MemoryImages, ToyInception, tensor, toy_images

REAL, FAKE = (MemoryImages(tensor(toy_images(count, seed=seed))) for count, seed in ((60, 1), (50, 2)))
FIRST = ("fid", "sfid", "is")
ON_ROWS = tuple(name for name, metric in METRICS.items() if metric.features == "pool" and name not in FIRST)
LATER = tuple(name for name in ON_ROWS if name not in ("rfid", "gfid") and not METRICS[name].by_class)


def measure(metrics, keep=None, toy=None, batch=8, recipe=(), **options):
    toy = toy or ToyInception()
    keeps = {}
    if keep is not None:
        keeps = {
            "keep_samples": Keep(keep, FAKE, dict(recipe)),
            "keep_originals": Keep(keep, REAL, dict(recipe)),
        }
    evaluator = Evaluator(networks={"inception": toy}, metrics=metrics, num_images=50, **keeps, **options)
    for images, positions in FAKE.batches(batch, evaluator.samples.todo()):
        evaluator.update(images, positions)
    for images, positions in REAL.batches(batch, evaluator.originals.todo()):
        evaluator.update_reference(images, positions)
    return evaluator.result(), evaluator.facts(), toy


def assert_equal(values, expected):
    assert values.keys() == expected.keys()
    assert values == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_second_metric_runs_no_network(tmp_path):
    values, facts, toy = measure(FIRST, tmp_path)
    assert sum(toy.calls) == 110
    expected, its_facts, _ = measure(FIRST)
    assert_equal(values, expected)
    assert facts == its_facts  # fingerprints, copies, counts
    values, facts, toy = measure(LATER, tmp_path)
    assert toy.calls == []
    expected, its_facts, _ = measure(LATER)
    assert_equal(values, expected)
    assert facts == its_facts
    values, _, toy = measure(("is",), tmp_path, protocol="torch-fidelity")
    assert toy.calls == [] and values == pytest.approx(measure(("is",), protocol="torch-fidelity")[0])


def test_other_pixels_or_another_network_have_other_rows(tmp_path):
    measure(("fid",), tmp_path)
    assert sum(measure(("fid",), tmp_path, recipe={"crop": "adm 16"})[2].calls) == 110
    assert sum(measure(("fid",), tmp_path, ToyInception("other"))[2].calls) == 110
    assert measure(("fid",), tmp_path)[2].calls == []


class Dying(ToyInception):
    """Ends its process, as the kernel does, at the fourth batch."""

    def __call__(self, images):
        if len(self.calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(images)


def _die(folder):
    torch.set_num_threads(1)
    measure(("fid",), folder, Dying())


@needs_fork
def test_a_killed_pass_loses_one_batch(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    values, facts, toy = measure(("fid",), tmp_path)
    assert sum(toy.calls) == 110 - 3 * 8
    expected, its_facts, _ = measure(("fid",))
    assert_equal(values, expected)
    assert facts == its_facts


@needs_fork
def test_two_processes_equal_one(tmp_path):
    expected, facts, _ = measure(FIRST + LATER)

    def share(rank):
        first = measure(FIRST + LATER, tmp_path / "kept")
        assert 0 < sum(first[2].calls) < 110
        second = measure(FIRST + LATER, tmp_path / "kept")
        assert second[2].calls == []
        for values, its_facts, _ in (first, second):
            assert_equal(values, expected)
            assert its_facts == facts

    in_two_processes(share, tmp_path)


def test_features_that_are_not_finite_fail_their_metrics_alone(tmp_path):
    class Broken(ToyInception):
        def __call__(self, images):
            features = super().__call__(images)
            return features._replace(pool=features.pool / 0)

    evaluator = Evaluator(
        networks={"inception": Broken()}, metrics=("fid", "is"), keep_samples=Keep(tmp_path, FAKE, {})
    )
    evaluator.update(torch.stack(list(FAKE.images(range(50)))), torch.arange(50))
    for images, positions in REAL.batches(60):
        evaluator.update_reference(images, positions)
    values, errors = evaluator.outcome()
    assert "is_50" in values and "not finite" in errors["fid"]


def test_missing_images_are_an_error(tmp_path):
    evaluator = Evaluator(
        networks={"inception": ToyInception()}, metrics=("is",), keep_samples=Keep(tmp_path, FAKE, {})
    )
    evaluator.update(torch.stack(list(FAKE.images(range(20)))), torch.arange(20))
    with pytest.raises(ValueError, match="features of 30 images are missing"):
        evaluator.result()
    assert np.array_equal(
        Evaluator(
            networks={"inception": ToyInception()}, metrics=("is",), keep_samples=Keep(tmp_path, FAKE, {})
        ).samples.todo(),
        np.arange(20, 50),
    )


def test_extrapolation_and_bootstrap_take_stored_statistics(tmp_path):
    """A reference of statistics is enough for them, with or without some of its images."""
    asked = ("fid_infinity", "fid_bootstrap")
    expected, _, _ = measure(asked)
    own, kept = (
        ToyInception()(torch.stack(list(REAL.images(range(60))))).pool,
        torch.stack(list(REAL.images(range(5)))),
    )
    np.savez(
        tmp_path / "reference.npz", mu=own.double().mean(0), sigma=own.double().T.cov(),
        arr_0=kept.permute(0, 2, 3, 1),
    )  # fmt: skip
    reference = open_reference(tmp_path / "reference.npz")
    evaluator = Evaluator(networks={"inception": ToyInception()}, metrics=asked, reference=reference)
    assert not evaluator.needs_reference_images
    for images, positions in FAKE.batches(16):
        evaluator.update(images, positions)
    assert_equal(evaluator.result(), expected)
