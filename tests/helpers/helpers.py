"""Small networks and plans sections that several tests share."""

import copy
import importlib.util
from pathlib import Path
from types import ModuleType

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

TEACHER = {
    "folder": "Dataset950_Tiny/nnUNetTrainer__nnUNetPlans__2d",
    "configuration": "2d",
    "plans_hash": "0" * 16,
    "stages": {
        "family": "PlainConvUNet",
        "channels": [8, 16, 32],
        "strides": [[1, 1], [2, 2], [4, 4]],
        "input_channels": 1,
        "outputs": 2,
        "parameters": 1000,
    },
}


def load_script(name: str) -> ModuleType:
    """scripts/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plans(**section) -> dict:
    return {"plans_name": "nnUNetKDPlans", "nnunet_kd": {"teacher": copy.deepcopy(TEACHER), **section}}


def network(
    dims: int = 2,
    features=(4, 8, 16),
    residual: bool = False,
    strides=None,
    supervision: bool = False,
    convs: int | list = 1,
    decoder_convs: int = 1,
):
    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    n = len(features)
    kwargs = dict(
        input_channels=1,
        n_stages=n,
        features_per_stage=list(features),
        conv_op=conv,
        kernel_sizes=3,
        strides=strides or [1] + [2] * (n - 1),
        num_classes=2,
        n_conv_per_stage_decoder=decoder_convs,
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=supervision,
    )
    if residual:
        return ResidualEncoderUNet(n_blocks_per_stage=convs, **kwargs)
    return PlainConvUNet(n_conv_per_stage=convs, **kwargs)
