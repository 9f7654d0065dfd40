"""The two-layer perceptron of transformer blocks whose checkpoints call its parts `fc1` and `fc2`."""

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear, exact GELU, linear; dropout after each of the last two."""

    def __init__(self, *, hidden_size: int, mlp_size: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, mlp_size)
        self.fc2 = nn.Linear(mlp_size, hidden_size)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))
