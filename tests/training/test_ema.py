import numpy as np
import pytest
import torch
from torch import nn

from tests.parity import fill_module, golden
from training.ema import EMA, ema_decay


@pytest.mark.parametrize(("key", "cap"), [("decay_titok", 0.999), ("decay_default_cap", 0.9999)])
def test_decay_equals_released_warm_up(key, cap):
    arrays = golden("ema")
    ours = [ema_decay(int(n), cap) for n in arrays["steps"]]
    np.testing.assert_allclose(ours, arrays[key], rtol=1e-12)


class Weights(nn.Module):
    def __init__(self, trainable, frozen):
        super().__init__()
        self.trainable = nn.Parameter(torch.tensor(trainable, dtype=torch.float32))
        self.frozen = nn.Parameter(torch.tensor(frozen, dtype=torch.float32), requires_grad=False)
        self.register_buffer("usage", torch.zeros(2))


def test_shadow_follows_the_released_simulation():
    arrays = golden("ema")
    source = Weights(arrays["sim_trainable"][0], arrays["sim_frozen"][0])
    ema = EMA(source, 0.999)
    for n in range(1, 13):
        with torch.no_grad():
            source.trainable.copy_(torch.tensor(arrays["sim_trainable"][n]))
            source.frozen.copy_(torch.tensor(arrays["sim_frozen"][n]))
            source.usage.fill_(n)
        ema.update(source, n)
        np.testing.assert_allclose(
            ema.module.trainable, arrays["sim_shadow_trainable"][n], rtol=1e-6, atol=1e-7
        )
        np.testing.assert_allclose(ema.module.frozen, arrays["sim_shadow_frozen"][n], rtol=1e-6)
        assert ema.module.usage.tolist() == [n, n]
    assert not any(p.requires_grad for p in ema.module.parameters())


def test_shadow_follows_a_constant_decay_as_open_magvit2_keeps_it(monkeypatch):
    """There the decay is 0.999 from the first update on; the averaging itself is the same."""
    arrays = golden("magvit2_losses")
    monkeypatch.setattr("training.ema.ema_decay", lambda updates, cap: cap)
    source = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    fill_module(source)
    ema = EMA(source, 0.999)
    for n, delta in enumerate(arrays["ema_deltas"], start=1):
        with torch.no_grad():
            source[0].weight.add_(torch.from_numpy(delta).view(3, 4))
        ema.update(source, n)
    np.testing.assert_allclose(ema.module[0].weight, arrays["ema_shadow"], rtol=1e-4)
    names = {name.replace(".", "") for name, _ in source.named_parameters()}
    assert names | {"decay", "num_updates"} == set(arrays["ema_names"])
