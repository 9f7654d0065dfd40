"""Lookup-free quantization (LFQ, arXiv:2310.05737): every channel is one bit; no codebook to learn."""

import torch
from torch.nn import functional as F

from modeling.quantizers.base import Quantizer, QuantizerOutput
from modeling.quantizers.bit_entropy import bit_entropies


class LFQ(Quantizer):
    """Signs of the channels, with straight-through gradient; no parameters and no state.

    Channel c gives bit c of the token: 1 and the value `magnitude` above 0, else (also at exactly 0) 0 and
    -`magnitude`. Bit 0 is the least significant.

    Losses, with v the (normalised) latents and q the codes: `commitment_loss` = commitment_cost mean((v - sg[q])^2);
    `entropy_loss` = entropy_weight (sample_entropy_weight `per_sample_entropy` - batch_entropy_weight `batch_entropy`),
    both of these without gradient and in nats; `quantizer_loss` = the sum of the first two. The softmax over codes e
    has the scores -|v - e|^2 / T, equal to 2 v e / T up to a constant.
    """

    magnitude: float = 1.0

    def __init__(
        self,
        *,
        bits: int = 18,  # channels of latents and codes; 2^bits codes
        commitment_cost: float = 0.25,
        entropy_weight: float = 0.1,  # 0 leaves the term out
        sample_entropy_weight: float = 1.0,  # of the entropy of single tokens, which falls
        batch_entropy_weight: float = 1.0,  # of the entropy of the mean over tokens, which rises
        entropy_temperature: float = 0.01,  # T
    ) -> None:
        super().__init__()
        if not 1 <= bits <= 62:
            raise ValueError(f"bits={bits} must be in 1 ... 62: tokens are 64-bit integers")
        if entropy_temperature <= 0:
            raise ValueError(f"entropy_temperature={entropy_temperature} must be above 0")
        self.codebook_size = 2**bits
        self.code_dim = self.latent_channels = bits
        self.bits_per_token = float(bits)
        self.commitment_cost, self.entropy_weight = commitment_cost, entropy_weight
        self.sample_entropy_weight, self.batch_entropy_weight = sample_entropy_weight, batch_entropy_weight
        self.entropy_temperature = entropy_temperature

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        with torch.autocast(latents.device.type, enabled=False):
            vectors = self.normalize(latents)
            chosen = vectors.detach() > 0
            codes = self._values(chosen)
            losses = self._losses(vectors, codes)
            quantized = codes + (vectors - vectors.detach())  # in this order the values are exactly the codes
        return QuantizerOutput(quantized=quantized, tokens=_tokens(chosen), losses=losses)

    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        places = torch.arange(self.code_dim, device=tokens.device)[:, None]
        return self._values((tokens[:, None] >> places) & 1 == 1).unsqueeze(2)  # [B, bits, 1, N]

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        return _tokens(self.normalize(latents) > 0)

    def _values(self, chosen: torch.Tensor) -> torch.Tensor:  # Channel values, float32, of bits given as bool
        return torch.where(chosen, self.magnitude, -self.magnitude).float()

    def _losses(self, vectors: torch.Tensor, codes: torch.Tensor) -> dict[str, torch.Tensor]:
        commitment = self.commitment_cost * F.mse_loss(vectors, codes)
        losses = {"quantizer_loss": commitment, "commitment_loss": commitment}
        if self.entropy_weight and self.training:  # collectives: evaluation may run on one process
            # 2 v e is 4 v_c magnitude more for the code with bit c than for the one that differs in it alone.
            logits = vectors.transpose(0, 1).flatten(1).t() * (4 * self.magnitude / self.entropy_temperature)
            sample, batch = bit_entropies(logits)
            total = self.sample_entropy_weight * sample - self.batch_entropy_weight * batch
            losses["entropy_loss"] = self.entropy_weight * total
            losses["quantizer_loss"] = commitment + losses["entropy_loss"]
            losses |= {"per_sample_entropy": sample.detach(), "batch_entropy": batch.detach()}
        return losses


def _tokens(chosen: torch.Tensor) -> torch.Tensor:  # bool [B, bits, H, W] -> [B, H * W]
    places = torch.arange(chosen.shape[1], device=chosen.device)[:, None]
    return (chosen.flatten(2).long() << places).sum(dim=1)  # [B, bits, H * W] -> [B, H * W]
