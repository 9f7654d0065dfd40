import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modeling.generators.frozen_linear import FrozenLinear


@pytest.mark.parametrize("packed_rows", [None, 3])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(3, 20), (2, 5, 20), (1, 20)])
def test_equals_linear(packed_rows, gelu, shape):
    torch.manual_seed(0)
    layer, x = nn.Linear(20, 33), torch.randn(shape)
    expected = F.gelu(layer(x)) if gelu else layer(x)
    actual = FrozenLinear(layer, packed_rows=packed_rows, gelu=gelu)(x)
    torch.testing.assert_close(actual, expected.detach(), atol=2e-6, rtol=1e-5)
    assert not actual.requires_grad


def test_without_onednn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    torch.manual_seed(0)
    layer, x = nn.Linear(20, 33), torch.randn(4, 20)
    assert torch.equal(FrozenLinear(layer, packed_rows=4, gelu=True)(x), F.gelu(layer(x)))
