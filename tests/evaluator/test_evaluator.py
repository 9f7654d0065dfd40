import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import multiprocessing

from common.build import ConfigError
from evaluator import evaluator as evaluator_module
from evaluator import protocol as protocols
from evaluator.copies import copy_warnings
from evaluator.evaluator import Evaluator
from evaluator.feature_store import FeatureStore
from evaluator.float_rfid import FloatRFID
from evaluator.image_files import open_images
from evaluator.image_set import ImageSet
from evaluator.inception import FeatureExtractor
from evaluator.inception_fast import FastInception
from evaluator.inception_network import InceptionV3
from evaluator.metrics import METRICS
from evaluator.metrics.fid import FrechetMetric
from evaluator.metrics.image_quality import ImageQuality
from evaluator.metrics.inception_score import InceptionScore
from evaluator.metrics.kid import kernel_distance, squared_mmd
from evaluator.metrics.precision_recall import precision_recall
from evaluator.moments import Statistics
from evaluator.networks import extractor_facts
from evaluator.reference import image_reference, open_reference, write_reference
from tests.evaluator.exact import frechet_distance_of_features
from tests.evaluator.toy import (
    MemoryImages,
    ToyFloat,
    ToyInception,
    tensor,
    toy_images,
    write_folder,
    write_tars,
)
from tests.parity import filled, golden, golden_json

REAL, FAKE = tensor(toy_images(60, seed=1)), tensor(toy_images(50, seed=2))
EVERYTHING = ("fid", "sfid", "is", "kid", "precision_recall")


def measure(samples=FAKE, reference=REAL, metrics=EVERYTHING, size=16, extractor=None, **options):
    evaluator = Evaluator(networks={"inception": extractor or ToyInception()}, metrics=metrics, **options)
    for batch in MemoryImages(samples).batches(size):
        evaluator.update(*batch)
    if evaluator.needs_reference_images:
        for batch in MemoryImages(reference).batches(size):
            evaluator.update_reference(*batch)
    return evaluator.result()


def test_all_metrics_equal_their_functions_on_the_features():
    toy = ToyInception()
    own, others = toy(FAKE), toy(REAL)
    values = measure(protocol="torch-fidelity", num_images=50)
    assert values["fid_50"] == pytest.approx(frechet_distance_of_features(others.pool, own.pool), rel=1e-6)
    assert values["sfid_50"] == pytest.approx(
        frechet_distance_of_features(others.spatial, own.spatial), rel=1e-7
    )
    score = InceptionScore(splits=10, order="shuffled", num_images=50, num_classes=9)
    score.update(own.logits)
    assert (values["is_50"], values["is_50_std"]) == pytest.approx(score.result(), rel=1e-6)
    assert values["kid"] == pytest.approx(squared_mmd(own.pool, others.pool), rel=1e-6)
    found = precision_recall(own.pool, others.pool)
    assert (values["precision"], values["recall"]) == tuple(found)
    assert list(values) == [
        "fid_50", "sfid_50", "is_50", "is_50_std", "kid", "precision", "recall",
    ]  # fmt: skip


def test_one_pass_feeds_every_metric():
    toy = ToyInception()
    measure(extractor=toy)
    assert sum(toy.calls) == len(REAL) + len(FAKE)


def test_neither_batches_nor_order_change_anything():
    whole = measure(protocol="torch-fidelity", num_images=50)
    assert measure(size=7, protocol="torch-fidelity", num_images=50) == pytest.approx(whole, rel=1e-6)
    evaluator = Evaluator(
        networks={"inception": ToyInception()}, metrics=EVERYTHING, protocol="torch-fidelity", num_images=50
    )
    for part in torch.randperm(50, generator=torch.Generator().manual_seed(0)).split(9):
        evaluator.update(FAKE[part], part)
    evaluator.update_reference(REAL)
    assert evaluator.result() == pytest.approx(whole, rel=1e-6)


def test_folder_npz_and_tars_give_identical_results(tmp_path):
    pixels = FAKE.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "a.npz", pixels)
    paths = [
        write_folder(tmp_path / "png", pixels),
        tmp_path / "a.npz",
        write_tars(tmp_path / "tars", pixels, 3),
    ]
    results, facts = [], []
    for path in paths:
        evaluator = Evaluator(networks={"inception": ToyInception()}, metrics=("fid", "is", "kid"))
        for batch in open_images(path).batches(8):
            evaluator.update(*batch)
        evaluator.update_reference(REAL)
        results.append(evaluator.result())
        facts.append(evaluator.facts())
    assert results[0] == results[1] == results[2] and facts[0] == facts[1] == facts[2]
    assert facts[0]["images"] == 50 and facts[0]["reference_images"] == 60


def test_the_fingerprint_knows_pixels_and_order():
    prints = set()
    for images in (FAKE, FAKE.flip(0), FAKE + torch.tensor([1, 0, 0], dtype=torch.uint8)[:, None, None]):
        evaluator = Evaluator(networks={"inception": ToyInception()}, metrics=("is",))
        evaluator.update(images)
        prints.add(evaluator.facts()["pixels_fingerprint"])
    assert len(prints) == 3


def test_floats_are_rounded_as_files_are_or_cut():
    def stored(images, **options):
        evaluator = Evaluator(networks={"inception": ToyInception()}, metrics=("is",), **options)
        evaluator.update(images)
        return evaluator.facts()["pixels_fingerprint"], evaluator.facts()["rounding"]

    floats = FAKE.float() / 255
    higher = floats + 0.9 / 255 * (floats < 1)
    assert stored(FAKE) == stored(floats) == stored(floats + 0.4 / 255) == stored(floats - 0.4 / 255)
    assert stored(higher, truncate=True) == (stored(FAKE)[0], "truncated")
    assert stored(higher)[0] != stored(FAKE)[0]


def test_stored_statistics_equal_those_of_the_images(tmp_path):
    toy = ToyInception()
    images = ImageSet([toy], [METRICS["fid"], METRICS["sfid"]])
    images.update(REAL)
    about = {"extractors": extractor_facts({"inception": toy})}
    write_reference(
        tmp_path / "r.npz",
        {kind: found for (kind, _), found in images.results()[0].items()},
        about,
        MemoryImages(REAL),
        keep_images=60,
    )
    reference = open_reference(tmp_path / "r.npz")
    assert measure(reference=REAL, metrics=EVERYTHING) == pytest.approx(
        measure_against(reference, REAL), rel=1e-6
    )


def measure_against(reference, images, metrics=EVERYTHING):
    evaluator = Evaluator(networks={"inception": ToyInception()}, metrics=metrics, reference=reference)
    evaluator.update(FAKE)
    if evaluator.needs_reference_images:
        evaluator.update_reference(images)
    return evaluator.result()


def test_statistics_alone_need_no_reference_images():
    toy = ToyInception()
    features = toy(REAL).pool.double()
    statistics = Statistics(features.mean(0).numpy(), torch.cov(features.T).numpy(), 60)
    reference = image_reference(MemoryImages(REAL), "training")
    reference.statistics, reference.images = {"pool": statistics}, None
    assert measure_against(reference, None, ("fid", "gfid")) == pytest.approx(
        {"fid_50": measure(metrics=("fid",))["fid_50"], "gfid_50": measure(metrics=("fid",))["fid_50"]}
    )
    for metrics, message in [
        (("sfid",), "no statistics of spatial"),
        (("kid",), "no images, which kid"),
        (("rfid",), "rfid compares reconstructions"),
    ]:
        with pytest.raises(ValueError, match=message):
            measure_against(reference, None, metrics)
    reference.protocol = {"extractors": {"inception": {"weights_hash": "other", "approximate": False}}}
    with pytest.raises(ValueError, match="weights other, the samples are measured with toy"):
        measure_against(reference, None, ("fid",))
    reference.protocol, reference.statistics = {}, {"pool": Statistics(np.zeros(3), np.eye(3))}
    with pytest.raises(ValueError, match="pool features have 3 numbers, expected 12"):
        measure_against(reference, None, ("fid",))


def test_pairs_give_image_quality_and_rfid_in_the_same_pass():
    originals, noise = REAL.float() / 255, torch.Generator().manual_seed(0)
    results = (originals + 0.05 * torch.randn(originals.shape, generator=noise)).clamp(0, 1)
    evaluator = Evaluator(
        networks={"inception": ToyInception()}, metrics=("rfid", "is", "psnr", "ssim"), protocol="tokenizer"
    )
    for part in torch.arange(60).split(11):
        evaluator.update_pairs(results[part], originals[part], part)
    values = evaluator.result()
    quality = ImageQuality()
    quality.update(originals, results)
    expected = quality.result()
    assert (values["psnr"], values["ssim"]) == pytest.approx((expected["psnr"], expected["ssim"]), rel=1e-6)
    stored = results.clamp(0, 1).mul(255).round().to(torch.uint8)
    assert values["rfid_60"] == pytest.approx(measure(stored, REAL, ("fid",))["fid_60"], rel=1e-6)
    facts = evaluator.facts()
    assert facts["rounding"] == "nearest" and facts["protocol"]["name"] == "tokenizer"
    assert json.loads(json.dumps(facts)) == facts


def test_paired_metrics_need_no_network():
    evaluator = Evaluator(networks={}, metrics=("psnr",))
    evaluator.update_pairs(FAKE, FAKE)
    assert evaluator.result() == {"psnr": 60.0}


def test_images_count_once_and_exactly():
    evaluator = Evaluator(networks={"inception": ToyInception()}, metrics=("is",), num_images=50)
    evaluator.update(FAKE[:4], torch.tensor([0, 1, 40, 3]))
    for positions in ([5, 40], [7, 7]):
        with pytest.raises(ValueError, match="position was given twice"):
            evaluator.update(FAKE[:2], torch.tensor(positions))
    with pytest.raises(ValueError, match="4 images were measured instead of 50"):
        evaluator.result()
    with pytest.raises(ValueError, match="3 positions for 2 images"):
        evaluator.update(FAKE[:2], torch.arange(3))


def test_positions_by_default_do_not_meet(monkeypatch):
    monkeypatch.setattr(evaluator_module.distributed, "world_size", lambda: 3)
    seen = []
    for rank in range(3):
        monkeypatch.setattr(evaluator_module.distributed, "rank", lambda rank=rank: rank)
        images = ImageSet([], [])
        for part in FAKE.split(20):
            images.update(part)
        seen += np.flatnonzero(images._seen).tolist()
    assert sorted(seen) == list(range(150))


@pytest.mark.parametrize(
    "images, message",
    [
        (FAKE[0], r"shape \[3, 16, 16\]"),
        (FAKE[:, :1], r"expected \[B, 3, H, W\]"),
        (FAKE.long(), "int64, expected uint8"),
        (torch.full((2, 3, 16, 16), float("nan")), "not finite"),
        (torch.full((2, 3, 16, 16), -float("inf")), "not finite"),
        (
            FAKE.float() / 127.5 - 1,
            r"from -.* to .*, expected \[0, 1\]; images in \[-1, 1\] are mapped by x / 2",
        ),
        (
            FAKE.float(),
            r"float values from 0 to 25\d, expected \[0, 1\]; levels of 8 bits are given as uint8",
        ),
        (FAKE.half() / 200 - 0.1, r"from -0.0.* to 1.1.*, expected \[0, 1\]; clamp what a decoder gives"),
        (FAKE.permute(0, 2, 3, 1), r"shape \[50, 16, 16, 3\], .* channels are last"),
        (FAKE[:, [0, 1, 2, 0]], "composite or drop alpha"),
    ],
)
def test_other_images_are_refused_at_every_door(images, message):
    evaluator = Evaluator(networks={"inception": ToyInception()}, metrics=("rfid", "psnr"))
    pairs = Evaluator(networks={}, metrics=("psnr",))
    doors = [evaluator.update, evaluator.update_reference]
    doors += [lambda x: pairs.update_pairs(x, FAKE), lambda x: pairs.update_pairs(FAKE, x)]
    if images.is_floating_point():
        rfid = FloatRFID(extractor=ToyFloat())
        floats = FAKE.float() / 255
        doors += [lambda x: rfid.update_pairs(x, floats), lambda x: rfid.update_pairs(floats, x)]
    for door in doors:
        with pytest.raises(ValueError, match=message):
            door(images)


def test_a_set_of_black_images_is_named():
    """Floats in [0, 1] that were cast to uint8 are 0, and 1 where they were white."""
    for images, black in [((FAKE.float() / 255).to(torch.uint8), True), (FAKE, False)]:
        evaluator = Evaluator(networks={"inception": ToyInception()}, metrics=("is",))
        evaluator.update(images)
        assert any("all samples are black" in note for note in copy_warnings(evaluator.facts())) is black


def test_contradictions_show_before_the_work():
    toy = {"inception": ToyInception()}
    with pytest.raises(ConfigError, match="'fdi' is unknown"):
        Evaluator(networks=toy, metrics=["fdi"])
    with pytest.raises(ValueError, match="features pool are needed, but no network"):
        Evaluator(networks={}, metrics=["fid"])
    with pytest.raises(ValueError, match="features dinov2_dgm are needed"):
        Evaluator(networks=toy, metrics=["fd_dinov2_dgm"])
    with pytest.raises(ValueError, match="lpips needs"):
        Evaluator(networks=toy, metrics=["lpips"])
    with pytest.raises(ConfigError, match="rfid .* another number"):
        Evaluator(networks=toy, metrics=["rfid"], num_images=5, reference=image_reference(MemoryImages(REAL)))
    evaluator = Evaluator(networks=toy, metrics=["fid"])
    evaluator.update(FAKE)
    with pytest.raises(ValueError, match="0 reference images were given"):
        evaluator.result()


class Failing(FrechetMetric):
    """A metric with a bug."""

    def compute(self, own, reference, **_):
        raise KeyError("bug")


class HalfBroken(ToyInception):
    """Its spatial features overflow."""

    def __call__(self, images):
        return super().__call__(images)._replace(spatial=torch.full((len(images), 7), float("inf")))


def test_a_metric_that_cannot_be_computed_leaves_the_others_alone(monkeypatch, capsys):
    monkeypatch.setitem(METRICS, "failing", Failing(name="failing", features="pool"))
    evaluator = Evaluator(networks={"i": HalfBroken()}, metrics=("fid", "sfid", "failing", "is"))
    evaluator.update(FAKE)
    evaluator.update_reference(REAL)
    values, errors = evaluator.outcome()
    assert values == pytest.approx(measure(metrics=("fid", "is"))) and set(errors) == {"sfid", "failing"}
    assert "not finite" in errors["sfid"] and errors["failing"] == "KeyError: 'bug'"
    assert "Traceback" in capsys.readouterr().err  # of what nobody expects
    assert evaluator.outcome().with_warnings() == values
    assert "warning: sfid cannot be computed" in capsys.readouterr().err
    with pytest.raises(ValueError, match="sfid cannot be computed: .*; failing cannot be computed: KeyError"):
        evaluator.result()


def test_a_full_disk_of_features_costs_only_the_metrics_that_need_them(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FeatureStore, "update", full)
    evaluator = Evaluator(networks={"i": ToyInception()}, metrics=("fid", "kid"))
    evaluator.update(FAKE)
    evaluator.update_reference(REAL)
    values, errors = evaluator.outcome()
    assert list(values) == ["fid_50"] and "No space left" in errors["kid"]


def test_images_too_small_for_a_window_have_a_psnr(monkeypatch):
    evaluator = Evaluator(networks={}, metrics=("psnr", "ssim"))
    evaluator.update_pairs(FAKE[..., :8, :8], FAKE[..., :8, :8])
    values, errors = evaluator.outcome()
    assert values == {"psnr": 60.0} and "at least 11 pixels, the images have 8" in errors["ssim"]


def test_copies_are_counted_over_positions_and_sets():
    samples = torch.cat([FAKE, FAKE[:3], REAL[7:9]])
    evaluator = Evaluator(networks={"i": ToyInception()}, metrics=("fid",))
    for part in torch.arange(55).flip(0).split(9):
        evaluator.update(samples[part], part)
    evaluator.update_reference(REAL)
    facts = evaluator.facts()
    assert facts["copies"] == {"samples": 3, "reference": 0, "in_both": 2}
    assert [note.split(" have ")[0] for note in copy_warnings(facts)] == [
        "3 of 55 samples",
        "2 of 55 samples",
    ]
    same = Evaluator(networks={"i": ToyInception()}, metrics=("rfid",))
    same.update_pairs(FAKE, torch.cat([FAKE[:40], REAL[:10]]))
    assert same.facts()["copies"] == {"samples": 0, "reference": 0, "in_both": 40, "equal_pairs": 40}
    different = Evaluator(networks={"i": ToyInception()}, metrics=("fid",))
    different.update(FAKE)
    different.update_reference(REAL)
    assert copy_warnings(different.facts()) == []


@pytest.mark.parametrize(
    "counts, spread", [((50, 60), False), ((60, 60), False), ((1000, 1000), False), ((1000, 1001), True)]
)
def test_kid_has_a_spread_only_if_subsets_differ(monkeypatch, counts, spread):
    rule = dataclasses.replace(protocols.PROTOCOLS["adm"], kid_subsets=3)
    pool, others = (torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in counts)
    found = METRICS["kid"].compute(pool, others, settings=rule, device="cpu")
    assert len(found) == 1 + spread
    if spread:  # as torch-fidelity has it
        assert tuple(found) == kernel_distance(pool, others, subsets=3, subset_size=1000)
    else:
        assert found[0] == pytest.approx(squared_mmd(pool, others))
        assert "without a spread" in METRICS["kid"].facts(rule, *counts)["kid_subset_size"]


def test_features_are_kept_by_position():
    store = FeatureStore(4)
    rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    for part in torch.arange(30).flip(0).split(7):
        store.update(rows[part].double(), part)
    assert torch.equal(store.result(), rows)
    assert FeatureStore(4).result().shape == (0, 4)


def _share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    options = {"protocol": "torch-fidelity", "num_images": 50}
    values = measure(size=9, **options)
    evaluator = Evaluator(networks={"inception": ToyInception()}, metrics=("is",))
    for batch in MemoryImages(FAKE).batches(9):
        evaluator.update(*batch)
    print_of_pixels = evaluator.facts()["pixels_fingerprint"]
    everyone = [None, None]
    torch.distributed.all_gather_object(everyone, values)
    assert everyone[0] == everyone[1]
    # An error of the main process reaches the others, which would otherwise wait for it.
    with pytest.raises(ValueError, match="neighbours=3"):
        measure(FAKE[:4], REAL[:3], ("precision_recall",))
    twice = Evaluator(networks={"inception": ToyInception()}, metrics=("is",))
    twice.update(FAKE[:5], torch.arange(5))
    with pytest.raises(ValueError, match="5 images were given to more than one process"):
        twice.result()
    if rank == 0:
        with open(f"{folder}/result.json", "w") as file:
            json.dump([values, print_of_pixels], file)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_processes_equal_one(tmp_path):
    multiprocessing.start_processes(_share, (str(tmp_path),), nprocs=2, start_method="fork")
    values, print_of_pixels = json.loads((tmp_path / "result.json").read_text())
    assert values == pytest.approx(measure(protocol="torch-fidelity", num_images=50), rel=1e-6)
    evaluator = Evaluator(networks={"inception": ToyInception()}, metrics=("is",))
    evaluator.update(FAKE)
    assert evaluator.facts()["pixels_fingerprint"] == print_of_pixels


def golden_network() -> InceptionV3:
    """The feature network with the weights that the golden numbers were made with."""
    network = filled(InceptionV3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("conv.weight"):
                parameter.mul_(1.5)
            elif name == "fc.weight":
                parameter.mul_(6.0)
    return network


@pytest.mark.slow
def test_the_whole_of_it_gives_the_numbers_of_the_published_tools(monkeypatch):
    arrays, expected = golden("eval_end_to_end"), golden_json("eval_end_to_end")
    rule = dataclasses.replace(
        protocols.PROTOCOLS["torch-fidelity"], is_splits=4, kid_subsets=5, kid_subset_size=12
    )
    monkeypatch.setitem(protocols.PROTOCOLS, "torch-fidelity", rule)
    plain = golden_network()
    fast = FastInception(plain)
    network = FeatureExtractor(fast, weights_hash="golden", precision="float32", device="cpu")
    fake, real = tensor(arrays["fake"]), tensor(arrays["real"])
    values = measure(fake, real, extractor=network, size=8, protocol="torch-fidelity", num_images=24)
    assert values["fid_24"] == pytest.approx(expected["fid_exact_f64_features"], rel=1e-5)
    assert values["fid_24"] == pytest.approx(expected["fid_torch_fidelity"], rel=1e-5)
    assert values["sfid_24"] == pytest.approx(expected["sfid_exact_f64_features"], rel=1e-5)
    assert values["kid"] == pytest.approx(expected["kid_torch_fidelity_subsets5_size12"][0], rel=1e-4)
    mean, spread = expected["is_torch_fidelity_splits4"]
    assert values["is_24"] == pytest.approx(mean, rel=1e-6)
    # The fast network just misses 1e-6 here: the spread is 20 times smaller than the score and magnifies
    # its rounding. Measured against the golden value: fast 1.005e-6, plain float32 1.5e-7, float64 -2.7e-7.
    assert values["is_24_std"] == pytest.approx(spread, rel=5e-6)
    score = InceptionScore(splits=4, order="shuffled", num_images=24)
    score.update(torch.cat([plain(part).logits for part in fake.split(8)]))
    assert tuple(score.result()) == pytest.approx((mean, spread), rel=1e-6)
    assert [values["precision"], values["recall"]] == pytest.approx(expected["pr_f64_k3"], abs=1e-6)
    pair = Evaluator(networks={"inception": network}, metrics=("rfid", "is"), protocol="tokenizer")
    pair.update_pairs(fake.float() / 255, real[:24].float() / 255)
    found, theirs = pair.result(), expected["one_d_tokenizer_first24"]
    assert found["rfid_24"] == pytest.approx(theirs["rFID"], abs=1e-3)
    assert found["rfid_24"] == pytest.approx(expected["fid_exact_first24_f64_features"], rel=1e-5)
    assert found["is_24"] == pytest.approx(theirs["InceptionScore"], rel=1e-6)


@pytest.mark.slow
def test_the_tokenizer_evaluator_to_the_last_digit():
    """It computes resize and network in float64; images come as multiples of 1/255."""
    arrays, expected = golden("eval_end_to_end"), golden_json("eval_end_to_end")["one_d_tokenizer_first24"]
    plain = golden_network().double()
    network = FeatureExtractor(plain, weights_hash="golden", precision="float64", device="cpu")
    fake, real = tensor(arrays["fake"]).float() / 255, tensor(arrays["real"])[:24].float() / 255
    pair = Evaluator(networks={"inception": network}, metrics=("rfid", "is"), protocol="tokenizer")
    for part in range(0, 24, 8):
        pair.update_pairs(fake[part : part + 8], real[part : part + 8], torch.arange(part, part + 8))
    found = pair.result()
    assert found["rfid_24"] == pytest.approx(expected["rFID"], abs=1e-4)
    assert found["is_24"] == pytest.approx(expected["InceptionScore"], rel=1e-8)
