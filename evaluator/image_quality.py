"""Similarity of reconstructions to originals: PSNR and SSIM, averaged over images."""

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from common import distributed
from common.images import to_float, to_uint8


class ImageQuality:
    """Mean per-image PSNR (dB) and SSIM of 8-bit images; sums only, reduced once over processes.

    Reconstructions are clamped and rounded to 8 bit first, as they would be when stored.
    """

    def __init__(self) -> None:
        self.psnr = self.ssim = 0.0
        self.count = 0

    def update(self, images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        """Add a batch: both [B, 3, H, W], originals in [0, 1]; returns the PSNR of every image, [B]."""
        reconstructions = to_float(to_uint8(reconstructions))
        images = images.float()
        psnr = peak_signal_noise_ratio(
            reconstructions, images, data_range=1.0, reduction="none", dim=(1, 2, 3)
        )
        # Identical images would count as infinitely good and spoil the mean; 8-bit rounding alone is at 59 dB.
        psnr = psnr.clamp(max=60.0)
        ssim = structural_similarity_index_measure(reconstructions, images, data_range=1.0, reduction="none")
        self.psnr += float(psnr.double().sum())
        self.ssim += float(ssim.double().sum())
        self.count += len(images)
        return psnr

    def result(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """`psnr`, `ssim` and `images` (how many), over all processes."""
        sums = torch.tensor([self.psnr, self.ssim, float(self.count)], dtype=torch.float64, device=device)
        psnr, ssim, count = distributed.all_reduce_sum(sums).tolist()
        return {"psnr": psnr / max(count, 1), "ssim": ssim / max(count, 1), "images": count}
