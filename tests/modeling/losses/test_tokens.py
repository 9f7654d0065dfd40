import pytest
import torch
import torch.nn.functional as F

from modeling.losses.tokens import autoregressive_loss
from tests.parity import assert_close, golden


def test_loss_accuracy_and_gradient_equal_reference():
    arrays = golden("generator_functions")
    logits = torch.from_numpy(arrays["ar_logits"]).requires_grad_()
    loss, accuracy = autoregressive_loss(logits, torch.from_numpy(arrays["ar_labels"]).long())
    loss.backward()
    assert_close(loss, arrays["ar_loss"], atol=1e-5, rtol=1e-5)
    assert_close(accuracy, arrays["ar_correct"], atol=1e-6)
    assert_close(logits.grad, arrays["ar_grad"], atol=1e-7, rtol=1e-4)


def test_without_unused_rows_and_in_bfloat16():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator).bfloat16()
    targets = torch.randint(7, (2, 5), generator=generator)
    loss, _ = autoregressive_loss(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float().transpose(1, 2), targets))


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="3 logit rows cannot predict 4 targets"):
        autoregressive_loss(torch.zeros(1, 3, 5), torch.zeros(1, 4, dtype=torch.long))
