"""Distances computed in another way than by the product, from the features themselves."""

import torch


def frechet_distance_of_features(x: torch.Tensor, y: torch.Tensor) -> float:
    """Of [N1, d] and [N2, d], exact whatever their rank.

    With centred rows, tr (S1 S2)^(1/2) = |X Y^T|_* / sqrt((N1 - 1)(N2 - 1)) (nuclear norm); triangular factors
    replace X and Y, so no matrix is larger than min(N, d) squared.
    """
    x, y = x.double(), y.double()
    means = [x.mean(dim=0), y.mean(dim=0)]
    # X = Q R with orthonormal columns in Q, so |X Y^T|_* = |R1 R2^T|_*, and the trace is the size of R.
    roots = [
        torch.linalg.qr(features - mean, mode="r").R / (len(features) - 1) ** 0.5
        for features, mean in zip((x, y), means, strict=True)
    ]
    traces = sum(root.square().sum() for root in roots)
    nuclear = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return float((means[0] - means[1]).square().sum() + traces - 2.0 * nuclear)
