"""Precision of a training run: autocast around every module's forward, and a loss scale per module in float16.

Weights, their gradients and optimizers are float32. Losses, frozen networks and what modules do beside `forward` run as
they are written, in float32.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from common.build import ConfigError
from common.console import say
from training.clipping import clip_gradient

MixedPrecision = Literal["no", "fp16", "bf16"]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Below it, after 26 halvings of the first scale, no gradient that is finite in float32 overflows.
LOWEST_SCALE = 2.0**-10


class Precision:
    """Precision of the modules of a run, and their updates.

    In float16 every module has a loss scale of its own (`torch.amp.GradScaler`): small gradients do not vanish, and an
    update whose gradient overflowed is skipped. Modules update in turn within a step, so a common scale would change
    between them, and between the micro-batches of one update.
    """

    def __init__(self, name: MixedPrecision, device: torch.device) -> None:
        self.dtype, self.device = DTYPES.get(name), device
        self.scaled = name == "fp16"
        self.scalers: dict[str, torch.amp.GradScaler] = {}
        self.updates: dict[str, list[tuple[int, torch.Tensor]]] = {}  # since the last report, on the device
        self.one = torch.ones((), device=device)

    def cast(self, name: str, module: nn.Module) -> None:
        """Run the module's forward under autocast from now on, in place; a tensor it returns is float32.

        To be called before the module is wrapped for several processes; copies made earlier stay float32.
        """
        if self.dtype is None:
            return
        forward = torch.autocast(self.device.type, dtype=self.dtype)(module.forward)

        def float32_output(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            return output.float() if isinstance(output, torch.Tensor) else output

        module.forward = float32_output
        if self.scaled:
            self.scalers[name] = torch.amp.GradScaler(self.device.type)

    def backward(self, name: str, loss: torch.Tensor) -> None:
        """Add the gradient of a loss; in float16 that of the loss times the scale of the module `name`."""
        (self.scalers[name].scale(loss) if self.scaled else loss).backward()

    def update(
        self,
        name: str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: int,
        max_norm: float | None,
    ) -> dict[str, torch.Tensor]:
        """Clip the gradient of a module and update it in the `step`-th step, or skip it; no wait for the device.

        Returns the norm as a scalar to log; in float16, `report` has it.
        """
        scaler = self.scalers.get(name)
        if scaler is None:
            norm = clip_gradient(module, max_norm)
            optimizer.step()
            return {} if norm is None else {f"gradient_norm/{name}": norm}
        before = scaler.scale(self.one)
        scaler.unscale_(optimizer)  # also looks for numbers that are not finite
        norm = clip_gradient(module, max_norm)
        scaler.step(optimizer)
        scaler.update()
        after = scaler.scale(self.one)
        seen = torch.stack([after, (after < before).float(), self.one * 0 if norm is None else norm])
        self.updates.setdefault(name, []).append((step, seen))
        return {}

    def report(self) -> dict[str, float]:
        """Scalars of the updates since the last report; says which were skipped.

        Raises:
            ConfigError: a gradient is not finite whatever the scale.
        """
        scalars: dict[str, float] = {}
        updates, self.updates = self.updates, {}
        for name, series in updates.items():
            scales, skipped, norms = torch.stack([seen for _, seen in series]).cpu().double().unbind(dim=1)
            scale, skipped = float(scales[-1]), skipped.bool()
            scalars |= {f"loss_scale/{name}": scale, f"skipped_updates/{name}": float(skipped.sum())}
            if not skipped.all():  # of the updates that were made
                scalars[f"gradient_norm/{name}"] = float(norms[~skipped].mean())
            if skipped.any():
                steps = [step for (step, _), skip in zip(series, skipped.tolist(), strict=True) if skip]
                some = ", ".join(map(str, steps[:8])) + (f" and {len(steps) - 8} more" if steps[8:] else "")
                say(
                    f"float16: the gradient of {name} overflowed, its update is skipped in step {some};"
                    f" the loss scale is now {scale:g}"
                )
            if scale < LOWEST_SCALE:
                raise ConfigError(
                    f"step {series[-1][0]}: the gradient of {name} is not finite in float16 at any loss scale;"
                    " checkpoints from before are untouched. Try training.mixed_precision=bf16"
                )
        return scalars

    def state(self) -> dict[str, dict]:
        """Loss scales by module, for a checkpoint; empty if there are none."""
        return {name: scaler.state_dict() for name, scaler in self.scalers.items()}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Continue with the loss scales of a checkpoint, if both have them."""
        if not state:
            return
        for name, scaler in self.scalers.items():
            # Checkpoints once held one scale for all modules.
            scaler.load_state_dict(state if "scale" in state else state[name])
