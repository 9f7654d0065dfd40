"""Every quantizer: a forward pass changes nothing, codes move when asked, and no step waits for the device."""

from contextlib import nullcontext

import pytest
import torch

from modeling.quantizers import QUANTIZERS
from modeling.quantizers.base import Quantizer
from tests.host_traffic import HostTraffic
from tests.modeling.quantizers.steps import step

TABLE = dict(codebook_size=16, code_dim=4)
CASES = {
    "vq": ("vq", TABLE),
    "vq entropy": ("vq", TABLE | dict(entropy_weight=0.1, use_l2_norm=True)),
    "vq clustering": ("vq", TABLE | dict(online_clustering=True)),
    "vq revival": ("vq", TABLE | dict(revive_below=0.9)),
    "ema_vq": ("ema_vq", TABLE),
    "ema_vq revival": ("ema_vq", TABLE | dict(revive_below=0.9)),
    "spherical_vq": ("spherical_vq", TABLE),
    "ibq": ("ibq", TABLE),
    "lfq": ("lfq", dict(bits=4)),
    "bsq": ("bsq", dict(bits=4)),
    "fsq": ("fsq", dict(levels=[5, 4, 3, 3], saturation_cost=0.1)),
    "vae": ("vae", dict(code_dim=2)),
}
MOVING = {"vq clustering", "vq revival", "ema_vq", "ema_vq revival", "spherical_vq"}
REVIVING = {"vq clustering", "vq revival", "ema_vq revival"}


def make(case: str) -> Quantizer:
    torch.manual_seed(0)
    name, options = CASES[case]
    return QUANTIZERS[name](**options).train()


def latents_of(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(seed))


def state(quantizer: Quantizer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_every_quantizer_is_here() -> None:
    assert {name for name, _ in CASES.values()} == QUANTIZERS.keys()


@pytest.mark.parametrize("case", CASES)
def test_a_training_forward_changes_nothing(case: str) -> None:
    quantizer = make(case)
    before = state(quantizer)
    outputs = [quantizer(latents_of().requires_grad_()) for _ in range(2)]
    outputs[0].quantized.sum().backward()
    if outputs[0].tokens is not None:
        quantizer.encode(latents_of())
        assert torch.equal(outputs[0].quantized, outputs[1].quantized)
    assert equal(state(quantizer), before)


@pytest.mark.parametrize("case", CASES)
def test_codes_move_once_per_call_and_it_says_what_it_did(case: str) -> None:
    quantizer, latents = make(case), latents_of()
    quantizer.start_codebook(latents_of(2))
    tokens, states, updates = quantizer(latents).tokens, [state(quantizer)], []
    for _ in range(2):
        updates.append(quantizer.update_codebook(latents, tokens))
        states.append(state(quantizer))
    moved = [not equal(*pair) for pair in zip(states, states[1:], strict=False)]
    assert moved == [case in MOVING] * 2, "a second call moves the codes once more"
    for update in updates:
        assert (update is not None) == (case in MOVING)
        assert update is None or (update.revived is not None) == (case in REVIVING)


@pytest.mark.parametrize("case", ["vq revival", "ema_vq revival"])
def test_revived_codes_are_counted_and_their_places_survive_a_file(case: str) -> None:
    quantizer, resumed = make(case), make(case)
    for seed in range(15):
        step(quantizer, latents_of(seed))
    resumed.update_codebook(
        latents_of(), resumed(latents_of()).tokens
    )  # its count is 1 before the file says 15
    resumed.load_state_dict(quantizer.state_dict())
    before = quantizer.embedding.weight.clone()
    updates = []
    for one in (quantizer, resumed):
        one.embed_prob[:3] = 0.0
        updates.append(one.update_codebook(latents_of(), torch.full((2, 15), 5)))
    assert equal(state(quantizer), state(resumed)) and quantizer.revivals == 16
    rows = {tuple(row.tolist()) for row in latents_of().permute(0, 2, 3, 1).reshape(-1, 4)}
    fresh = [tuple(row.tolist()) in rows for row in quantizer.embedding.weight]
    assert all(fresh[:3]) and updates[0].revived == updates[1].revived == sum(fresh)
    assert not torch.equal(quantizer.embedding.weight, before)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_neither_reads_nor_feeds_the_device(
    case: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU tensors made of Python numbers are seen, on the meta device copies; it also refuses to be read."""
    quantizer, latents = make(case), latents_of()
    step(quantizer, latents)  # what is read once after construction
    quantizer, latents = quantizer.to(device), latents.to(device).requires_grad_()
    if device == "meta":  # which has neither autocast nor a generator of its own
        host = torch.Generator
        monkeypatch.setattr(torch, "Generator", lambda device: host())
        monkeypatch.setattr(torch, "autocast", lambda device, enabled: nullcontext())
    with HostTraffic() as traffic:
        output = quantizer(latents)
        (output.quantized.sum() + sum(output.losses.values())).backward()
        quantizer.update_codebook(latents.detach(), output.tokens)
        if output.tokens is not None:
            quantizer.lookup(output.tokens)
            quantizer.encode(latents)
            quantizer.normalize(latents)
    assert not traffic.found


def test_host_traffic_is_seen() -> None:
    class Careless(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.tensor([1.0, 2.0]) if x.device.type == "cpu" else x + torch.ones(2).to("meta")

    for device in ("cpu", "meta"):
        with HostTraffic() as traffic:
            Careless()(torch.zeros(2, device=device))
        assert len(traffic.found) == 1
    with HostTraffic() as traffic:
        torch.zeros(()).item()
    assert traffic.found == ["aten._local_scalar_dense.default"]
