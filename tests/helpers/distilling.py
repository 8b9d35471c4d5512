"""One distilling step without nnU-Net's trainer, shared by several tests."""

import torch
from helpers import network, plans

from nnunet_kd.config.run import read_config
from nnunet_kd.distillation.distiller import Distiller
from nnunet_kd.distillation.step import SegmentationTask
from nnunet_kd.networks.stages import StageTap, stage_table
from nnunet_kd.networks.teacher import FrozenTeacher

SIZE = 16
LATE = 0.9  # of the training: every term is on


def setup(preset: str, dims: int = 2, regions: bool = False, batch: int = 2, supervision: bool = False, **section):
    """A distiller with its teacher, a student of other width, a batch and its annotation."""
    torch.manual_seed(0)
    teacher, student = network(dims, (8, 16, 16)), network(dims, (4, 4, 8), supervision=supervision)
    tables = {"teacher": stage_table(teacher), "student": stage_table(student)}
    config = read_config(plans(ramp=0, **section), preset, "test")
    task = SegmentationTask(patch_size=[SIZE] * dims, outputs=2, classes=2, regions=regions, keep_zero=[False])
    distiller = Distiller(config, student, tables, task, torch.device("cpu"))
    distiller.attach(FrozenTeacher(teacher, range(dims)))
    data = torch.randn(batch, 1, *[SIZE] * dims)
    labels = (torch.rand(batch, 1, *[SIZE] * dims) > 0.5).long()
    onehot = torch.cat([labels == 0, labels == 1], 1).float()
    return distiller, student, data, onehot


def run(distiller, student, data, onehot, progress=LATE, mask=None, iteration=0):
    """The step's tensors and terms; the student's features are kept as the trainer keeps them."""
    step = distiller.prepare(data, onehot, mask, progress, onehot.argmax(1), iteration)
    tap = StageTap(student, decoder=distiller.needs_decoder_stages)
    tap.enabled = True
    output = student(step.data)
    step.student_logits = output[0] if isinstance(output, list) else output
    step.student_features = tap.take()
    tap.remove()
    return step, distiller.terms(step)


def touched(module, value):
    """Names of the parameters that a term's gradient reaches (non-zero)."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    return {n for n, g in zip(names, gradients, strict=True) if g is not None and g.abs().max() > 0}


def of_encoder(names):
    return {n for n in names if n.startswith("encoder.")}


def of_decoder(names):
    # nnU-Net's decoder holds the encoder a second time
    return {n for n in names if n.startswith("decoder.") and not n.startswith("decoder.encoder.")}
