"""A data set without images, a teacher with random weights, and trainers that are ready for a step on them."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

from nnunet_kd.config.presets import settings_of
from nnunet_kd.utils.errors import KDError

DATASET = "Dataset999_Bench"


@dataclass(frozen=True)
class Row:
    """A line of the table: a preset, with settings merged into it."""

    preset: str
    settings: dict

    @property
    def name(self) -> str:
        return f"{self.preset} + `{json.dumps(self.settings)}`" if self.settings else self.preset


@contextlib.contextmanager
def bench_folders(o: argparse.Namespace) -> Iterator[tuple[dict, dict]]:
    """nnU-Net's three folders in a temporary one, for as long as the context lasts. Yields student plans and dataset.json."""
    from nnunet_kd.nnunet_io.model_folder import read_model_folder
    from nnunet_kd.nnunet_io.teacher_folder import describe_teacher

    with tempfile.TemporaryDirectory() as root, mock.patch.dict(os.environ):
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{name}"] = f"{root}/{name}"
        for name in ("nnUNet_extTrainer", "nnUNet_compile", "nnUNet_wandb_enabled"):
            os.environ.pop(name, None)
        if o.compile is not None:
            os.environ["nnUNet_compile"] = str(o.compile)
        dataset_json = {
            "channel_names": {"0": "intensity"},
            "labels": {"background": 0, "foreground": 1},
            "numTraining": 1,
            "file_ending": ".png",
        }
        preprocessed = Path(root, "preprocessed", DATASET)
        (preprocessed / "bench").mkdir(parents=True)
        (preprocessed / "bench" / "case.b2nd").touch()  # its ending tells nnU-Net the format
        (preprocessed / "dataset_fingerprint.json").write_text("{}")

        plans = unet_plans(o, o.teacher_features)
        folder = Path(root, "results", DATASET, f"nnUNetTrainer__nnUNetPlans__{configuration_name(o)}")
        write_untrained(folder, plans, dataset_json)
        teacher = asdict(describe_teacher(read_model_folder(folder), str(folder)))
        section = {"teacher": teacher, "schedule": {"cpu_precision": o.cpu_precision}}
        yield {**unet_plans(o, o.student_features), "nnunet_kd": section}, dataset_json


def write_untrained(folder: Path, plans: dict, dataset_json: dict) -> None:
    """A stock model folder TRAINER__PLANS__CONFIGURATION whose fold 0 has the network's first weights."""
    import torch

    from nnunet_kd.nnunet_io.model_folder import build_network, read_model_folder

    (folder / "fold_0").mkdir(parents=True)
    for name, content in (("plans.json", plans), ("dataset.json", dataset_json)):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    model = read_model_folder(folder)
    arguments = {"plans": plans, "configuration": model.configuration, "fold": 0, "dataset_json": dataset_json}
    checkpoint = {
        "network_weights": build_network(model).state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": arguments,
        "inference_allowed_mirroring_axes": tuple(range(len(plans["configurations"][model.configuration]["patch_size"]))),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def configuration_name(o: argparse.Namespace) -> str:
    return "2d" if len(o.patch) == 2 else "3d_fullres"


def unet_plans(o: argparse.Namespace, features: list[int]) -> dict:
    """Plans of a PlainConvUNet; an axis is halved from stage to stage while 4 pixels remain."""
    axes, stages = len(o.patch), len(features)
    size, strides = list(o.patch), [[1] * axes]
    for _ in range(stages - 1):
        strides.append([2 if n >= 8 else 1 for n in size])
        if any(n % s for n, s in zip(size, strides[-1], strict=True)):
            raise KDError(
                f"--patch {o.patch}: {size} cannot be halved for {stages} stages; use multiples of {2 ** (stages - 1)}"
            )
        size = [n // s for n, s in zip(size, strides[-1], strict=True)]
    network = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": features,
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [[3] * axes] * stages,
            "strides": strides,
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": "bench",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": o.batch,
        "patch_size": o.patch,
        "spacing": [1.0] * axes,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [o.field_of_view],
        "batch_dice": True,
        "architecture": network,
    }
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetKDPlans",
        "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": list(range(3)),
        "transpose_backward": list(range(3)),
        "label_manager": "LabelManager",
        "configurations": {configuration_name(o): configuration},
    }


class Trainers:
    """Makes trainers that are ready for a step, and batches for them."""

    def __init__(self, o: argparse.Namespace, plans: dict, dataset_json: dict) -> None:
        import torch

        self.o, self.plans, self.dataset_json, self.device = o, plans, dataset_json, torch.device(o.device)
        torch.set_num_threads(o.threads)
        torch.manual_seed(0)
        if o.device == "cuda":
            torch.backends.cudnn.benchmark = True  # as nnU-Net's run_training does
            # every row has compiled networks of its own, each for its own number of rows
            torch._dynamo.config.recompile_limit = 1000
            torch._dynamo.config.automatic_dynamic_shapes = False

    def make(self, row: Row):
        """The trainer of a row, in the middle of the distil phase."""
        from nnunet_kd.training.distillation import nnUNetTrainerDistillation
        from nnunet_kd.training.scheduled import nnUNetTrainerScheduled

        settings = dict(row.settings)
        if self.o.views is not None and ("views" in settings or "views" in settings_of(row.preset)):
            settings["views"] = {**settings.get("views", {}), "count": self.o.views}
        plans = json.loads(json.dumps(self.plans))
        plans["nnunet_kd"] |= {"preset": row.preset, **settings}
        plans["continue_training"] = False
        kind = nnUNetTrainerScheduled if row.preset == "student" else nnUNetTrainerDistillation
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = kind(plans, configuration_name(self.o), 0, self.dataset_json, self.device)
            trainer.get_dataloaders = lambda: (None, None)
            trainer.on_train_start()
            kd = trainer.kd
            late = kd.ramp + (kd.act.end if kd.act else 0)
            trainer.current_epoch = int(trainer.num_epochs * (min(late, 0.99) + 1) / 2)
            trainer.on_train_epoch_start()
        return trainer

    def batch(self, trainer, rows: int) -> dict:
        """Noise, and smooth blobs as its annotation, at every resolution of deep supervision."""
        import torch
        import torch.nn.functional as F

        patch = tuple(self.o.patch)
        data = torch.randn(rows, 1, *patch)
        if self.o.field_of_view:
            edge = patch[-1] // 8
            data[..., :edge], data[..., -edge:] = 0, 0
        coarse = torch.randn(rows, 1, *(max(2, n // 8) for n in patch))
        labels = (F.interpolate(coarse, patch, mode="bilinear" if len(patch) == 2 else "trilinear") > 0.5).float()
        scales = trainer._get_deep_supervision_scales()
        targets = [F.interpolate(labels, [round(n * s) for n, s in zip(patch, scale, strict=True)]) for scale in scales]
        return {"data": data.to(self.device), "target": [t.short().to(self.device) for t in targets]}
