import pytest
import torch
import torch.nn.functional as F

from modeling.losses.tokens import autoregressive_loss, factorized_loss, masked_token_loss
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


def test_factorized_loss_is_the_sum_over_sub_tokens():
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 5, size, generator=generator, requires_grad=True) for size in (3, 7)]
    targets = torch.stack([torch.randint(size, (2, 5), generator=generator) for size in (3, 7)], dim=-1)
    loss, accuracy = factorized_loss(logits, targets)
    loss.backward()
    total, right = 0.0, 0
    for b in range(2):
        for n in range(5):
            rows = [part[b, n].detach().double() for part in logits]
            total -= sum(row.log_softmax(-1)[t].item() for row, t in zip(rows, targets[b, n], strict=True))
            right += all(row.argmax() == t for row, t in zip(rows, targets[b, n], strict=True))
    assert loss.item() == pytest.approx(total / 10, abs=1e-6) and accuracy.item() == pytest.approx(right / 10)
    for g, part in enumerate(logits):
        expected = (part.softmax(-1) - F.one_hot(targets[..., g], part.shape[-1])) / 10
        torch.testing.assert_close(part.grad, expected.detach())


def test_accuracy_of_factorized_tokens_wants_all_sub_tokens():
    targets = torch.tensor([[[0, 1], [1, 1], [0, 0], [1, 0]]])
    logits = [F.one_hot(torch.tensor([[0, 1, 0, 0]]), 2), F.one_hot(torch.tensor([[1, 1, 1, 1]]), 2)]
    _, accuracy = factorized_loss([part.bfloat16() for part in logits], targets)
    assert accuracy.item() == 0.5


@pytest.mark.parametrize("shape", [(1, 4, 2), (1, 3, 3), (2, 3, 2)])
def test_factorized_targets_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="cannot predict targets"):
        factorized_loss([torch.zeros(1, 3, 5)] * 2, torch.zeros(shape, dtype=torch.long))


def masked_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (a leaf), tokens and mask of the golden file."""
    arrays = golden("generator_functions")
    logits = torch.from_numpy(arrays["mlm_logits"]).requires_grad_()
    return logits, torch.from_numpy(arrays["mlm_targets"]), torch.from_numpy(arrays["mlm_mask"])


@pytest.mark.parametrize(("smoothing", "unmasked"), [(0.1, 0.1), (0.0, 0.0), (0.1, 1.0)])
def test_masked_loss_accuracy_and_gradient_equal_reference(smoothing, unmasked):
    arrays, name = golden("generator_functions"), f"mlm_ls{smoothing}_wu{unmasked}"
    logits, tokens, mask = masked_inputs()
    loss, accuracy = masked_token_loss(
        logits, tokens, mask, label_smoothing=smoothing, unmasked_weight=unmasked
    )
    loss.backward()
    assert_close(loss, arrays[f"{name}_loss"], atol=1e-5, rtol=1e-5)
    assert_close(accuracy, arrays[f"{name}_correct"], atol=1e-6)
    assert_close(logits.grad, arrays[f"{name}_grad"], atol=1e-7, rtol=1e-4)


def test_masked_loss_counts_a_hit_only_where_hidden():
    tokens = torch.tensor([[0, 1], [1, 0]])
    logits = 50 * F.one_hot(tokens, 3).bfloat16()
    mask = torch.tensor([[True, False], [False, False]])
    loss, accuracy = masked_token_loss(logits, tokens, mask, label_smoothing=0, unmasked_weight=0.5)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(0, abs=1e-6)
    assert accuracy.item() == pytest.approx(0.5)


def test_masked_loss_of_shapes_that_do_not_fit_is_refused():
    logits, tokens, mask = masked_inputs()
    with pytest.raises(ValueError, match=r"mask \[3, 8\]: expected"):
        masked_token_loss(logits, tokens, mask[:, 1:])
