"""What a discriminator sees when it judges codes together with the classes predicted for them."""

import torch


def codes_by_class(h: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Outer product of a code and its class probabilities (Long et al., CDAN, NeurIPS 2018, eq. 4).

    h: (n, b); logits: (n, C) -> (n, b C), entry (k, c) is h_ik p_ic, p = softmax(logits) without
    a gradient: the features align, the predictions do not give way.
    """
    p = torch.softmax(logits, dim=1).detach()
    return (h[:, :, None] * p[:, None, :]).flatten(1)
