"""The MSANs of teacher and student, the semantic autoencoder, and their Alignment Consistency Training (ACT).

Gradients of ACT reach the MSANs only, gradients of the distillation terms never do: ``train_step`` asks autograd for the
gradients of the MSAN's parameters alone, and outside of it the parameters do not require gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from nnunet_kd.config.terms import ACT, MSAN
from nnunet_kd.losses import decoded_consistency, reconstruction, regularisation, view_consistency
from nnunet_kd.networks.msan import build_msan
from nnunet_kd.networks.semantic_autoencoder import SemanticAutoencoder
from nnunet_kd.networks.stages import StagePair, StageTable, decode, swap
from nnunet_kd.nnunet_io.checkpoints import load_checkpoint
from nnunet_kd.utils import distributed as ranks
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.finite import all_finite, skip_if

NETWORKS = ("teacher", "student")
_AUTOENCODER = "autoencoder."  # in a checkpoint's names


class Alignment(nn.Module):
    """TAN and SAN at every paired stage, plus the P-SAE.

    Args:
        pairs: paired stages; teacher and student vectors of one pair have the same size, so headers can be exchanged.
        tables: stage tables, ``{"teacher": ..., "student": ...}``, or of one of them alone (a network fitted post hoc).
        patch_size: spatial size of the training patches.
        num_labels: channels of the one-hot annotation (0: no P-SAE).
        regions: the annotation's channels are overlapping regions.

    Raises:
        KDError: settings that no MSAN can be built with at these stages.
    """

    def __init__(
        self,
        msan: MSAN,
        act: ACT,
        pairs: Sequence[StagePair],
        tables: dict[str, StageTable],
        patch_size: Sequence[int],
        num_labels: int,
        regions: bool = False,
    ) -> None:
        super().__init__()
        self.act, self.pairs = act, list(pairs)
        self.networks = [network for network in NETWORKS if network in tables]
        self.msans = nn.ModuleDict()
        for pair in self.pairs:
            for network in self.networks:
                stage, table = getattr(pair, network), tables[network]
                try:
                    module = build_msan(msan.kind, table.width(stage), table.size(stage, patch_size), msan.dim, msan.hidden)
                except ValueError as error:
                    raise KDError(f'"nnunet_kd.msan" does not fit {network} stage {pair.name}: {error}') from None
                self.msans[f"{network}_{pair.name}"] = module
        self.autoencoder = None
        if act.semantic > 0 and num_labels > 0:
            self.autoencoder = SemanticAutoencoder(num_labels, len(patch_size), msan.dim, regions=regions)
        self.requires_grad_(False)

    @property
    def trains_autoencoder(self) -> bool:
        """Whether there is a P-SAE that the warm-up trains; a loaded one stays as it is."""
        return self.autoencoder is not None and self.act.autoencoder is None

    def load_autoencoder(self, file: Path) -> None:
        """Take over the P-SAE, statistics included, from the checkpoint of an earlier training.

        Raises KDError if the file is no checkpoint, holds no P-SAE, or one of other labels, dimensions or length.
        """
        kept = load_checkpoint(file).get("nnunet_kd", {}).get("distiller", {}).get("alignment", {})
        state = {k.removeprefix(_AUTOENCODER): v for k, v in kept.items() if k.startswith(_AUTOENCODER)}
        if not state:
            raise KDError(
                f'"nnunet_kd.act.autoencoder": {file} holds no semantic autoencoder; name the checkpoint of a training with '
                'MSANs and "semantic" above 0, such as nnUNetTrainerGKD\'s'
            )
        expected = {k: v.shape for k, v in self.autoencoder.state_dict().items()}
        if {k: v.shape for k, v in state.items()} != expected:
            raise KDError(
                f'"nnunet_kd.act.autoencoder": that of {file} was trained for other labels, another msan.dim or other spatial '
                "dimensions; name one of the same, or remove the key to train one"
            )
        self.autoencoder.load_state_dict(state)

    def encode(self, network: str, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Semantic vectors ``(B, d)``, one per paired stage. Gradients reach the features, not the MSAN."""
        return [self.msans[f"{network}_{pair.name}"].encode(features[getattr(pair, network)].float()) for pair in self.pairs]

    def summaries(self, network: str, vectors: list[torch.Tensor]) -> list[torch.Tensor]:
        """The vectors ``(B, d)`` as FSD, P-SAE and DCGD's patch nodes read them: a map's mean, other kinds as they are."""
        return [self.msans[f"{network}_{pair.name}"].summary(z) for pair, z in zip(self.pairs, vectors, strict=True)]

    def maps(self, network: str, vectors: list[torch.Tensor]) -> list[torch.Tensor]:
        """The vectors ``(B, d)`` as maps ``(B, d / nodes, *grid)``, for DCGD's class nodes."""
        grids = [self.msans[f"{network}_{pair.name}"].grid for pair in self.pairs]
        return [z.reshape(len(z), -1, *grid) for z, grid in zip(vectors, grids, strict=True)]

    def reconstruct(
        self, network: str, vectors: list[torch.Tensor], features: list[torch.Tensor], decoder: bool = False
    ) -> dict[int, torch.Tensor]:
        """Features rebuilt by one network's headers, ``{stage: (B, C, *S)}``, in the size of that network's features.

        Encoder stages only, the ones that can be swapped, unless ``decoder`` is set.
        """
        rebuilt = {}
        for pair, z in zip(self.pairs, vectors, strict=True):
            if pair.decoder and not decoder:
                continue
            stage = getattr(pair, network)
            rebuilt[stage] = self.msans[f"{network}_{pair.name}"].reconstruct(z, size=tuple(features[stage].shape[2:]))
        return rebuilt


class AlignmentTrainer:
    """Owns the AdamW optimizers of the MSANs and the P-SAE and runs their steps.

    RECONSTRUCTION: the paper names ACT and a pre-trained P-SAE; the four parts, weights and schedule are this project's.
    """

    def __init__(self, alignment: Alignment) -> None:
        self.alignment = alignment
        act = alignment.act
        self.msan_optimizer = torch.optim.AdamW(alignment.msans.parameters(), lr=act.lr, weight_decay=1e-4)
        self.autoencoder_optimizer = None
        if alignment.autoencoder is not None:
            self.autoencoder_optimizer = torch.optim.AdamW(alignment.autoencoder.parameters(), lr=act.lr, weight_decay=1e-4)

    def autoencoder_step(self, onehot: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, float]:
        """Train the P-SAE on annotations ``(B, L, *S)`` and keep the statistics its vectors are standardised by.

        One that was loaded stays as it is.
        """
        if not self.alignment.trains_autoencoder:
            return {}
        autoencoder = self.alignment.autoencoder
        with _training(autoencoder):
            loss = autoencoder.loss(onehot, mask)
            _step(self.autoencoder_optimizer, loss, autoencoder, "the P-SAE's")
        with torch.no_grad():
            autoencoder.observe(ranks.gather_with_gradient(autoencoder.encode(onehot)[None])[0])  # all ranks' samples
        return {"act_autoencoder": float(loss.detach())}

    def msan_step(
        self,
        networks: dict[str, nn.Module],
        features: dict[str, list[torch.Tensor]],
        logits: dict[str, torch.Tensor],
        onehot: torch.Tensor,
        remaining: float,
        regions: bool,
        mask: torch.Tensor | None,
    ) -> dict[str, float]:
        """One ACT step on both MSANs.

        Args:
            networks: teacher and student, for their decoders.
            features: detached stage features of both networks on the anchors and, for the student and where the parts need
                it for the teacher, their K views, ``((K + 1) * B, C, *S)``.
            logits: detached anchor logits of both networks, ``(B, L, *S)``.
            onehot: annotation of the anchor, ``(B, L, *S)``.
            remaining: 1 at the start of ACT, 0 at its end; the learning rate follows a half cosine.

        Returns:
            Per-part values and the quality of the alignment: relative reconstruction error, cosine between views and
            agreement of the decoded reconstruction's labels with the network's own.
        """
        act, alignment = self.alignment.act, self.alignment
        for group in self.msan_optimizer.param_groups:
            group["lr"] = act.lr * 0.5 * (1 - math.cos(math.pi * remaining)) + 1e-2 * act.lr
        semantic = None
        if alignment.autoencoder is not None:
            with torch.no_grad():
                semantic = alignment.autoencoder.standardise(alignment.autoencoder.encode(onehot))
        values: dict[str, float] = {}
        total = 0.0
        with _training(alignment.msans):
            for name in alignment.networks:
                feats = [f.float() for f in features[name]]
                batch = len(logits[name])
                views = len(feats[0]) // batch - 1
                vectors = alignment.encode(name, feats)
                rebuilt = alignment.reconstruct(name, vectors, feats, decoder=True)
                parts = {
                    "reconstruction": _mean([reconstruction(rebuilt[stage], feats[stage]) for stage in rebuilt]),
                }
                if semantic is not None:
                    repeated = semantic.repeat(views + 1, 1)
                    summaries = alignment.summaries(name, vectors)
                    parts["semantic"] = _mean([regularisation(z, repeated) for z in summaries])
                if views and act.consistency:
                    parts["consistency"] = _mean(
                        [view_consistency(z[:batch], z[batch:].reshape(views, batch, -1)) for z in vectors]
                    )
                if act.alignment:
                    if name == "teacher":
                        anchors = [z[:batch].detach() for z in vectors]
                    else:
                        # the student's vectors of anchor and views, all towards the teacher's of the anchor
                        parts["alignment"] = _mean(
                            [reconstruction(z, t.repeat(views + 1, 1)) for z, t in zip(vectors, anchors, strict=True)]
                        )
                swappable = {getattr(p, name) for p in alignment.pairs if not p.decoder}
                if act.decoded and swappable:
                    anchor = [f[:batch] for f in feats]
                    decoded = decode(networks[name], swap(anchor, {s: rebuilt[s][:batch] for s in swappable}))
                    predicted = logits[name].float()
                    parts["decoded"] = decoded_consistency(decoded, predicted, regions=regions, mask=mask)
                    values[f"act_agreement_{name}"] = _agreement(decoded, predicted, regions)
                total = total + sum(getattr(act, part) * value for part, value in parts.items())
                values.update({f"act_{part}_{name}": float(value.detach()) for part, value in parts.items()})
            _step(self.msan_optimizer, total, alignment.msans, "the MSANs'")
        return values

    def state_dict(self) -> dict:
        optimizer = self.autoencoder_optimizer
        return {
            "msan": self.msan_optimizer.state_dict(),
            "autoencoder": optimizer.state_dict() if optimizer else None,
        }

    def load_state_dict(self, state: dict) -> None:
        self.msan_optimizer.load_state_dict(state["msan"])
        if self.autoencoder_optimizer is not None:
            self.autoencoder_optimizer.load_state_dict(state["autoencoder"])


class _training:
    """Parameters require gradients inside, and do not outside."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.module.requires_grad_(True)

    def __exit__(self, *error: object) -> None:
        self.module.requires_grad_(False)


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, module: nn.Module, whose: str) -> None:
    """Step on the gradients of ``module`` alone: networks the loss ran through keep their .grad untouched.

    Raises:
        SkipStep: NaN or Inf; nothing has changed.
    """
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    given = [g for g in gradients if g is not None]
    for gradient in given:
        ranks.average(gradient)
    skip_if("" if all_finite([loss, *given]) else f"{whose} loss or gradient is not finite", loss.device)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _mean(values: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(values).mean()


@torch.no_grad()
def _agreement(a: torch.Tensor, b: torch.Tensor, regions: bool) -> float:
    same = ((a > 0) == (b > 0)) if regions else (a.argmax(1) == b.argmax(1))
    return float(same.float().mean())
