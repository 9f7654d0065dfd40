import torch

from training.randomness import ExampleRandom, mix, seed_step


def test_seeds_are_unrelated_and_fit_every_generator():
    seeds = [mix(*parts) for parts in [(0,), (1,), (0, 0), (0, "0x"), ("a", 1), ("a1",), (0, "step", 1, 0)]]
    assert len(set(seeds)) == len(seeds) and all(0 <= s < 2**63 for s in seeds)
    assert mix(42, "step", 3) == mix(42, "step", 3)


def test_values_are_those_of_every_earlier_version():
    # Resumed runs and published results depend on them.
    assert mix(42, "step", 3) == 8079892654424098933
    uniform = ExampleRandom(7, torch.tensor([5])).uniform("order", 2)
    assert uniform.tolist() == [[0.8005993366241455, 0.6671536564826965]]


def test_numbers_belong_to_the_example_not_to_the_batch():
    whole = ExampleRandom(1, torch.arange(8))
    part = ExampleRandom(1, torch.tensor([6, 2]))
    for draw in ("uniform", "normal"):
        rows = getattr(whole, draw)("noise", 3, 2)
        assert rows.shape == (8, 3, 2) and rows.dtype == torch.float32
        assert torch.equal(getattr(part, draw)("noise", 3, 2), rows[[6, 2]])
        assert len(rows.flatten(1).unique(dim=0)) == 8


def test_purposes_seeds_and_steps_are_independent():
    positions = torch.arange(2000)
    one = ExampleRandom(1, positions).uniform("a")
    others = [ExampleRandom(1, positions).uniform("b"), ExampleRandom(2, positions).uniform("a")]
    others.append(ExampleRandom(1, positions + 2000).uniform("a"))
    for other in others:
        assert torch.corrcoef(torch.stack([one, other]))[0, 1].abs() < 0.1
    assert one.shape == (2000,) and one.min() >= 0 and one.max() < 1 and (one.mean() - 0.5).abs() < 0.03
    normal = ExampleRandom(1, positions).normal("a")
    assert normal.mean().abs() < 0.1 and (normal.std() - 1).abs() < 0.05


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    ExampleRandom(1, torch.arange(4)).normal("a", 5)
    assert torch.equal(torch.rand(2), expected)


def test_steps_seed_the_global_generator_anew(monkeypatch):
    draws = []
    for seed, step, rank in [(1, 4, 0), (1, 5, 0), (2, 4, 0), (1, 4, 1), (1, 4, 0)]:
        monkeypatch.setattr("common.distributed.rank", lambda rank=rank: rank)
        seed_step(seed, step)
        draws.append(torch.rand(1).item())
    assert draws[0] == draws[-1] and len(set(draws)) == 4
