"""The feature network rearranged for speed; its features are those of `InceptionV3` up to float32 rounding.

None of the differences is an approximation:
- batch normalisation is folded into the convolutions (in float64), which add the bias and the ReLU themselves;
- memory is channels-last, and on processors weights are put into the layout of oneDNN's kernels once, not per call;
- 1 x 1 convolutions that read the same input are one convolution;
- a 1 x 1 convolution and the average pool before it change places (both are linear, and a pool that leaves padding
  out of its divisor keeps constants, so the bias may come first too): the pool sees 32 to 192 channels instead of
  192 to 1280;
- the large maps of the first layers are computed for an image at a time, so that they stay in the cache.
"""

from contextlib import AbstractContextManager, ExitStack

import torch
import torch.nn.functional as F
from torch import nn

from evaluator.inception_network import (
    DIMS,
    IMAGE_SIDE,
    ConvUnit,
    InceptionFeatures,
    InceptionV3,
    average_pool,
    check_images,
    flatten_spatial,
)
from evaluator.resize import resize_tf1_rows
from modeling.layers.half import PRECISIONS


class FusedConv:
    """Convolution units with batch normalisation folded in; several units become one with their outputs in a row.

    Args:
        units: units that read the same input, with equal kernel, stride and padding.
        relu: False leaves the ReLU to the caller.
        batch: images per call that weights are laid out for; others work, possibly slower.
    """

    def __init__(
        self, *units: ConvUnit, dtype: torch.dtype, device: torch.device, relu: bool = True, batch: int
    ) -> None:
        conv = units[0].conv
        folded = [_folded(unit) for unit in units]
        self.sizes = [len(bias) for _, bias in folded]
        weight = torch.cat([weight for weight, _ in folded]).to(device, dtype)
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias = torch.cat([bias for _, bias in folded]).to(device, dtype)
        self.stride, self.padding, self.relu, self.batch = list(conv.stride), list(conv.padding), relu, batch
        self.packs, self.packed = _can_pack(device, dtype), False

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in, H, W] in channels-last memory -> [B, out, H', W'] in channels-last memory."""
        if not self.packs:
            x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
            return x.relu_() if self.relu else x
        if not self.packed:  # at the first call, which knows the size of the maps
            shape = [self.batch, *x.shape[1:]]
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, self.padding, self.stride, [1, 1], 1, shape
            )
            self.packed = True
        attribute = "relu" if self.relu else "none"
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, self.padding, self.stride, [1, 1], 1, attribute, [], ""
        )

    def parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The output taken apart into those of the units, each in channels-last memory of its own."""
        return [part.contiguous(memory_format=torch.channels_last) for part in self(x).split(self.sizes, 1)]


class FastInception:
    """`InceptionV3` for evaluation, made once from a loaded network; called like it.

    Args:
        dtype: float32, or bfloat16 (features off by 7e-3 relative) or float16 for an approximation.
        batch: images that go through the later layers at once.
        stem_batch: images that go through the first layers at once; None: 1 on a processor, else `batch`.

    Raises:
        ValueError: another `dtype`, or a batch size below 1.
    """

    def __init__(
        self,
        network: InceptionV3,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch: int = 16,
        stem_batch: int | None = None,
    ) -> None:
        if dtype not in PRECISIONS.values():
            raise ValueError(f"dtype is {dtype}; the fast network computes in {', '.join(PRECISIONS)}")
        self.device, self.dtype, self.batch = torch.device(device), dtype, batch
        if stem_batch is None:
            stem_batch = 1 if self.device.type == "cpu" else batch
        self.stem_batch = stem_batch
        if min(self.batch, self.stem_batch) < 1:
            raise ValueError(f"batch is {batch} and stem_batch is {stem_batch}; expected at least 1")
        self.fc = network.fc.weight.detach().to(self.device, torch.float64)  # without its bias
        self.convs: dict[str, FusedConv] = {}
        for name, module in network.named_children():
            if isinstance(module, ConvUnit):
                self._add(name, module, batch=self.stem_batch)
            elif name != "fc":
                self._add_block(name, module)

    def _add(self, name: str, *units: ConvUnit, relu: bool = True, batch: int | None = None) -> None:
        self.convs[name] = FusedConv(
            *units, dtype=self.dtype, device=self.device, relu=relu, batch=batch or self.batch
        )

    def _add_block(self, name: str, block: nn.Module) -> None:
        units = dict(block.named_children())
        # First 1 x 1 convolutions of a block's branches, in the order of the state dict.
        heads = [n for n, unit in units.items() if unit.conv.kernel_size == (1, 1) and n != "branch_pool"]
        self._add(f"{name}.heads", *[units.pop(head) for head in heads])
        for branch, unit in units.items():
            swapped = branch == "branch_pool" and not getattr(block, "max_pool", False)
            self._add(f"{name}.{branch}", unit, relu=not swapped)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> InceptionFeatures:
        """Features of uint8 images [B, 3, H, W] of any size, float32, on the device of the network."""
        check_images(images)
        if not len(images):  # the share of a process that got none; kernels need not cope with it
            return InceptionFeatures(*(torch.zeros(0, size, device=self.device) for size in DIMS.values()))
        with full_precision(self.device):
            parts = [self._features(chunk) for chunk in images.split(self.batch)]
        return InceptionFeatures(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _features(self, images: torch.Tensor) -> InceptionFeatures:
        x = torch.cat([self._stem(chunk) for chunk in images.split(self.stem_batch)])
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = torch.cat(self._block_a(name, x), 1)
        x = torch.cat(self._block_b(x), 1)
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            parts = self._block_c(name, x)
            if name == "Mixed_6d":
                spatial = flatten_spatial(parts[0]).float()
            x = torch.cat(parts, 1)
        x = torch.cat(self._block_d(x), 1)
        x = torch.cat(self._block_e("Mixed_7b", x), 1)
        # The mean of every branch, so that the last and widest map is never put together.
        last = self._block_e("Mixed_7c", x, max_pool=True)
        pool = torch.cat([part.float().mean((2, 3)) for part in last], 1)  # [B, 2048]
        # float64: a process-wide setting may let float32 products be rounded to fewer bits.
        return InceptionFeatures(pool, (pool.double() @ self.fc.T).float(), spatial)

    def _stem(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.to(self.device).permute(0, 2, 3, 1).contiguous()
        # Normalised first: exact for 8-bit values, and fewer of them than after an enlargement.
        x = resize_tf1_rows(pixels.float().sub_(128).mul_(1 / 128), IMAGE_SIDE).to(self.dtype)
        x = self.convs["Conv2d_1a_3x3"](x.permute(0, 3, 1, 2))
        x = self.convs["Conv2d_2b_3x3"](self.convs["Conv2d_2a_3x3"](x))
        x = self.convs["Conv2d_3b_1x1"](F.max_pool2d(x, 3, 2))
        return F.max_pool2d(self.convs["Conv2d_4a_3x3"](x), 3, 2)

    def _chain(self, block: str, names: tuple[str, ...], x: torch.Tensor) -> torch.Tensor:
        for name in names:
            x = self.convs[f"{block}.{name}"](x)
        return x

    def _pooled(self, block: str, x: torch.Tensor) -> torch.Tensor:
        return average_pool(self.convs[f"{block}.branch_pool"](x)).relu_()  # the pool comes second

    def _block_a(self, block: str, x: torch.Tensor) -> list[torch.Tensor]:
        one, five, three = self.convs[f"{block}.heads"].parts(x)
        five = self._chain(block, ("branch5x5_2",), five)
        three = self._chain(block, ("branch3x3dbl_2", "branch3x3dbl_3"), three)
        return [one, five, three, self._pooled(block, x)]

    def _block_b(self, x: torch.Tensor) -> list[torch.Tensor]:
        double = self._chain("Mixed_6a", ("heads", "branch3x3dbl_2", "branch3x3dbl_3"), x)
        return [self.convs["Mixed_6a.branch3x3"](x), double, F.max_pool2d(x, 3, 2)]

    def _block_c(self, block: str, x: torch.Tensor) -> list[torch.Tensor]:
        one, single, double = self.convs[f"{block}.heads"].parts(x)
        single = self._chain(block, ("branch7x7_2", "branch7x7_3"), single)
        double = self._chain(block, tuple(f"branch7x7dbl_{i}" for i in (2, 3, 4, 5)), double)
        return [one, single, double, self._pooled(block, x)]

    def _block_d(self, x: torch.Tensor) -> list[torch.Tensor]:
        three, seven = self.convs["Mixed_7a.heads"].parts(x)
        three = self._chain("Mixed_7a", ("branch3x3_2",), three)
        seven = self._chain("Mixed_7a", tuple(f"branch7x7x3_{i}" for i in (2, 3, 4)), seven)
        return [three, seven, F.max_pool2d(x, 3, 2)]

    def _block_e(self, block: str, x: torch.Tensor, *, max_pool: bool = False) -> list[torch.Tensor]:
        one, single, double = self.convs[f"{block}.heads"].parts(x)
        double = self._chain(block, ("branch3x3dbl_2",), double)
        parts = [one, *(self.convs[f"{block}.branch3x3_2{side}"](single) for side in "ab")]
        parts += [self.convs[f"{block}.branch3x3dbl_3{side}"](double) for side in "ab"]
        if max_pool:
            return [*parts, self.convs[f"{block}.branch_pool"](F.max_pool2d(x, 3, 1, 1))]
        return [*parts, self._pooled(block, x)]


def _folded(unit: ConvUnit) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias, float64, of the convolution that does what `unit` does before its ReLU."""
    bn = unit.bn
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    weight = unit.conv.weight.double() * scale[:, None, None, None]
    return weight.detach(), (bn.bias.double() - bn.running_mean.double() * scale).detach()


def _can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build and processor have the operators torch made for compiled graphs, which take packed weights."""
    ops = torch.ops.mkldnn
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(ops, name) for name in ("_convolution_pointwise", "_reorder_convolution_weight")):
        return False
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return dtype == torch.float32 or getattr(ops, supported[dtype], bool)()


def full_precision(device: torch.device) -> AbstractContextManager:
    """Within it, no autocast of a surrounding training step, and no TensorFloat-32 in convolutions."""
    stack = ExitStack()
    stack.enter_context(torch.autocast(device.type, enabled=False))
    if device.type == "cuda":  # torch allows TensorFloat-32 there by default, with errors of 1e-3
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False))
    return stack
