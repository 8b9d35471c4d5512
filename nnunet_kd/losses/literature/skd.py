"""Structured knowledge distillation (SKD): its pixel-wise and its pair-wise part. The adversarial part is left out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_kd.losses.base import Loss
from nnunet_kd.losses.channels import check_features, check_logits
from nnunet_kd.losses.precision import full_precision


class SKDPixelwise(Loss):
    r"""Cross entropy of the student's prediction under the teacher's, mean over samples and pixels.

    .. math:: L = -\mathrm{mean}_i \sum_c p^t_{ic} \log p^s_{ic}

    At equality the value is the teacher's entropy, not 0; the gradient is that of :class:`~nnunet_kd.losses.kd.KD` at
    temperature 1.

    Source: Liu et al., "Structured knowledge distillation for semantic segmentation", CVPR 2019. Its sum over the samples of
    a batch of 8, with weight 10, is a weight of 80 for the mean.

    Args:
        regions: the channels are overlapping regions with a sigmoid each; their cross entropies are summed.
    """

    name = "skd-pixelwise"
    reads = "logits"
    weight = 80.0

    def __init__(self, *, regions: bool = False) -> None:
        super().__init__()
        self.regions = regions

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Logits `(B, C, *S)` of both networks -> scalar; ``target`` is not used."""
        check_logits(student, teacher)
        if self.regions:
            return student.shape[1] * F.binary_cross_entropy_with_logits(student, teacher.detach().sigmoid())
        return F.cross_entropy(student, teacher.detach().softmax(1))


class SKDPairwise(Loss):
    r"""Squared difference of the cosines between all pairs of pooled pixels, mean over samples and pairs.

    .. math:: L = \frac{1}{N M^2} \sum_{nij} (A^t_{nij} - A^s_{nij})^2, \quad A_{ij} = \hat f_i^T \hat f_j, \quad
        \hat f_i = f_i / (|f_i| + 10^{-8})

    f is max-pooled to M nodes: kernel and stride are ``int(scale * size)`` per axis, and what is left over at the end gets a
    node too. No gradient goes through :math:`|f_i|`, as in the original. Student and teacher may have different channels.

    Memory does not grow with M^2: beyond as many nodes as channels, the sums over the pairs are taken from products of
    channels by channels. So nothing but the published pooling is needed, at full resolution neither. In float32 those sums
    cancel near s = t: values below about 1e-7 are rounding, the gradient is good to a percent at differences of 1e-4.

    Source: as :class:`SKDPixelwise`, weight 1, with the same mean.

    Args:
        scale: above 0 and below 1; 0.5 makes 2 nodes per axis.

    Raises:
        ValueError: another ``scale``.
    """

    name = "skd-pairwise"
    reads = "features"
    weight = 1.0

    def __init__(self, *, scale: float = 0.5) -> None:
        super().__init__()
        if not 0 < scale < 1:
            raise ValueError(f"scale must lie between 0 and 1, not {scale}")
        self.scale = scale

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Features `(B, K_s, *S)` and `(B, K_t, *S)` -> scalar; ``target`` is not used."""
        return _pairwise(student, teacher, [max(1, int(self.scale * size)) for size in student.shape[2:]])


class SKDPairwise2x2(Loss):
    """:class:`SKDPairwise` with a fixed kernel: two pixels per axis and node, so a fine grid instead of a coarse one.

    Source: Yang et al., "Cross-image relational knowledge distillation", CVPR 2022, whose "SKD" is this; weight 10, with the
    same mean. A 3-D kernel (2x2x2) is our extension.
    """

    name = "skd-2x2"
    reads = "features"
    weight = 10.0

    def __init__(self) -> None:  # nn.Module's own would take any option
        super().__init__()

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Features `(B, K_s, *S)` and `(B, K_t, *S)` -> scalar; ``target`` is not used."""
        return _pairwise(student, teacher, [min(2, size) for size in student.shape[2:]])


def _pairwise(student: Tensor, teacher: Tensor, kernel: list[int]) -> Tensor:
    check_features(student, teacher)
    s, t = _nodes(student, kernel), _nodes(teacher.detach(), kernel)
    samples, _, count = s.shape
    if count <= max(s.shape[1], t.shape[1]):
        return F.mse_loss(s.transpose(1, 2) @ s, t.transpose(1, 2) @ t)
    # |A_s - A_t|^2 = |A_s|^2 - 2 <A_s, A_t> + |A_t|^2, and <f^T f, g^T g> = |f g^T|^2: K x K instead of M x M
    squares = [(a @ b.transpose(1, 2)).square().sum() for a, b in ((s, s), (s, t), (t, t))]
    return (squares[0] - 2 * squares[1] + squares[2]) / (samples * count**2)


def _nodes(features: Tensor, kernel: list[int]) -> Tensor:
    """Pooled pixels of length 1, `(B, K, M)`."""
    pool = F.max_pool2d if features.ndim == 4 else F.max_pool3d
    nodes = pool(features, kernel, kernel, ceil_mode=True).flatten(2)
    return nodes / (torch.linalg.vector_norm(nodes.detach(), dim=1, keepdim=True) + 1e-8)
