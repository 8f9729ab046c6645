"""How much training on a pair is expected to lower its chosen response: the CHES score of Razin et al. 2024.

Source: "Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization", section 5, definition 2.
"""

from torch import Tensor


def ches(chosen: Tensor, rejected: Tensor) -> tuple[float, float]:
    """Centered hidden embedding similarity of the two responses of a pair, before training.

    With s and t, the sums of h over the tokens of the chosen and of the rejected response:

        total      s . t - s . s
        per token  s . t / (T U) - s . s / T^2

    The higher, the more the rejected response points in the direction of the chosen one, and the more the gradient
    that lowers it lowers the chosen one too. Chosen responses of different length make totals incomparable, so compare
    pairs by the value per token.

    Args:
        chosen: [T, H], h: what the output layer reads where it predicts each token of the response.
        rejected: [U, H].

    Returns:
        (total, per token), in squared units of h.
    """
    s, t = chosen.double().sum(dim=0), rejected.double().sum(dim=0)
    length, other = len(chosen), len(rejected)
    product, square = (s @ t).item(), (s @ s).item()
    return product - square, product / (length * other) - square / length**2
