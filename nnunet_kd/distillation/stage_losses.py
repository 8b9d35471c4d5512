"""The losses of section "losses" (of the literature, on logits or between stages) as one module with all that they learn.

A learned adapter (FitNets' regressor, a channel match, a queue) is a parameter or buffer of this module: the trainer puts the
parameters into nnU-Net's optimizer and the state into the checkpoint, under a key of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.config.stage_losses import LossSetting
from nnunet_kd.config.validation import SECTION
from nnunet_kd.distillation.step import repeat_rows, rows_of
from nnunet_kd.losses.registry import LOSSES
from nnunet_kd.networks.stages import StageTable, pair_stages
from nnunet_kd.utils.errors import KDError

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class SectionLosses(nn.Module):
    """All entries of section "losses".

    Args:
        settings: the checked entries.
        tables: stage tables "teacher" and "student"; not read for losses on logits.
        dims: 2 or 3.
        classes: annotated classes, background included.
        regions: the logits are those of overlapping regions.
    """

    def __init__(
        self,
        settings: Sequence[LossSetting],
        tables: dict[str, StageTable] | None,
        dims: int,
        classes: int,
        regions: bool,
    ) -> None:
        super().__init__()
        self.settings, self.losses, self.stages = [], nn.ModuleList(), []
        for setting in settings:
            for student, teacher in _places(setting, tables):
                self.settings.append(setting)
                self.stages.append((student, teacher))
                self.losses.append(_make(setting, student, teacher, tables, dims, classes, regions))

    def forward(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        batch: int,
    ) -> dict[str, Tensor]:
        """``{name in the log: value}``, summed over the stages of one entry.

        Args:
            student, teacher: stage features of anchor and views, ``((K + 1) * B, C, *S)``; the teacher's may be of the anchors
                alone. Empty lists if all losses are on logits.
            student_logits, teacher_logits: likewise.
            labels: classes of the anchors ``(B, *S)``, -1 where not annotated.
            batch: B.
        """
        values: dict[str, Tensor] = {}
        rows = student_logits.shape[0] // batch
        labels = repeat_rows(labels, rows)
        for setting, (of_student, of_teacher), loss in zip(self.settings, self.stages, self.losses, strict=True):
            s = [student[i] for i in of_student] or [student_logits]
            t = [teacher[i] for i in of_teacher] or [teacher_logits]
            t = [rows_of(x, batch, rows, setting.target) for x in t]
            s = [_to_grid(x, y) for x, y in zip(s, t, strict=True)]
            value = loss(s[0], t[0], labels) if len(s) == 1 else loss(tuple(s), tuple(t), labels)
            values[setting.key] = values.get(setting.key, 0.0) + value
        return values


def _to_grid(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's feature on the teacher's grid, for stages that were paired by name and not by stride."""
    size = teacher.shape[2:]
    if student.shape[2:] == size:
        return student
    return F.interpolate(student, size=size, mode=_LINEAR[len(size)], align_corners=False)


def _places(setting: LossSetting, tables: dict[str, StageTable] | None) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pairs (student stages, teacher stages) of one entry; empty tuples for logits."""
    if setting.on_logits:
        return [((), ())]
    of_student, of_teacher = setting.sides
    where = f"{SECTION}.losses.{setting.place}"
    if setting.place in ("all", "decoder"):
        pairs = pair_stages(tables["teacher"], tables["student"], [setting.place], where)
        if LOSSES[setting.name].reads == "pairs":
            if len(pairs) < 2:
                raise KDError(f'"{where}.{setting.name}" compares neighbouring stages, and the networks share only one')
            return [((a.student, b.student), (a.teacher, b.teacher)) for a, b in zip(pairs, pairs[1:], strict=False)]
        return [((p.student,), (p.teacher,)) for p in pairs]
    if of_teacher is None:
        pairs = [pair_stages(tables["teacher"], tables["student"], [_spec(s)], where)[0] for s in of_student.split("+")]
        return [(tuple(p.student for p in pairs), tuple(p.teacher for p in pairs))]
    return [(_indices(of_student, tables["student"], where), _indices(of_teacher, tables["teacher"], where))]


def _spec(stage: str) -> str | int:
    """A stage's name in the words of `pair_stages`."""
    return int(stage[len("encoder") :]) if stage.startswith("encoder") else stage


def _indices(side: str, table: StageTable, where: str) -> tuple[int, ...]:
    return tuple(_index(stage, table, where) for stage in side.split("+"))


def _index(stage: str, table: StageTable, where: str) -> int:
    if stage == "bottleneck":
        return table.depth - 1
    kind, number = ("encoder", stage[7:]) if stage.startswith("encoder") else ("decoder", stage[7:])
    last = table.depth - (1 if kind == "encoder" else 2)
    if int(number) > last:
        raise KDError(f'"{where}": a {table.family} of {table.depth} stages has {kind}0 to {kind}{last}, no {stage}')
    return int(number) + (table.depth if kind == "decoder" else 0)


def _make(
    setting: LossSetting,
    student: tuple[int, ...],
    teacher: tuple[int, ...],
    tables: dict[str, StageTable] | None,
    dims: int,
    classes: int,
    regions: bool,
) -> nn.Module:
    context: dict[str, Any] = {"dims": dims, "classes": classes, "regions": regions}
    for network, stages in (("student", student), ("teacher", teacher)):
        widths = tuple(tables[network].width(stage) for stage in stages) if tables else ()
        context[f"{network}_channels"] = widths[0] if len(widths) == 1 else widths
    try:
        return LOSSES[setting.name].build(setting.options.keywords, **context)
    except ValueError as error:
        raise KDError(f'"{SECTION}.{setting.path}": {error}') from None
