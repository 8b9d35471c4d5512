"""nnU-Net's trainer variants as mix-ins: ours come first in the list of bases, or theirs hide ours without a word."""

from __future__ import annotations

from nnunet_kd.utils.errors import KDError


def check_order(trainer: type, ours: type, nnunet: type) -> None:
    """Make sure that no variant of nnU-Net's hides a method of this package's trainers.

    A variant that stands before ours, such as nnUNetTrainerDiceLoss with its `_build_loss`, does not know of ours and calls
    nnU-Net's own: the training would run without distillation. Behind ours it takes nnU-Net's place.

    Args:
        trainer: the class about to train.
        ours: the root of this package's trainers.
        nnunet: nnUNetTrainer.

    Raises:
        KDError: a class of nnU-Net's stands before one of ours and both define a method.
    """
    order = [c for c in trainer.__mro__ if issubclass(c, nnunet) and c not in (trainer, nnunet)]
    for place, variant in enumerate(order):
        if issubclass(variant, ours):
            continue
        for our_class in (c for c in order[place + 1 :] if issubclass(c, ours)):
            hidden = sorted(n for n in vars(variant).keys() & vars(our_class).keys() if not n.startswith("__"))
            if hidden:
                first = next(c for c in order if issubclass(c, ours)).__name__
                raise KDError(
                    f"{trainer.__name__} names {variant.__name__} before {first}, so that its {hidden[0]} hides "
                    f"{our_class.__name__}'s: write class {trainer.__name__}({first}, {variant.__name__})"
                )
