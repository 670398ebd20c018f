"""How a linear code shares its energy out among components.

Lee and Petersen 1976, IEEE Trans. Commun. 24: amplitudes of variance v_k that are sent with energies p_k and are
estimated in noise of power n by LMMSE leave sum_k v_k n / (p_k + n). At a given sum of the p_k that is least for
p_k = max(0, m sqrt(v_k n) - n), where the water level m is what the sum asks for.
"""

import torch
from jaxtyping import Float, Real
from torch import Tensor

Energies = Float[Tensor, "batch amplitudes"]


def allocate(
    variance: Float[Tensor, " amplitudes"],
    count: Real[Tensor, " batch"],
    energy: Float[Tensor, " batch"],
    noise: Float[Tensor, " batch"],
) -> Energies:
    """Energy of each amplitude of each image; 0 beyond its first `count`.

    variance: of the amplitudes, above 0, descending. energy: to be shared out. noise: power that each amplitude
    meets, above 0.
    """
    root = variance.sqrt()
    place = torch.arange(1, len(variance) + 1, device=variance.device)
    within = place <= count[:, None]
    # with the first k active, m sqrt(n) = (energy + k n) / (n sum of the k roots) times n
    level = (energy[:, None] / noise[:, None] + place) / root.cumsum(0)
    # amplitude k is active if the level of the first k leaves it something: true up to a place, false beyond
    active = within & (level * root > 1)
    last = active.sum(1, keepdim=True).clamp(min=1) - 1
    shared: Energies = noise[:, None] * (level.gather(1, last) * root - 1).clamp(min=0) * within
    return shared
