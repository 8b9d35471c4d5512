"""Files that are legal for nnU-Net and rarely seen, made out of the usual ones."""

import json
from pathlib import Path


def change(file: Path, new) -> None:
    """Write what `new` makes of a JSON file's content."""
    file.write_text(json.dumps(new(json.loads(file.read_text()))))


def as_before_2_5(plans: dict) -> dict:
    """Plans as nnU-Net wrote them before 2.5: the network's class by its short name, its numbers beside the patch size."""
    for config in plans["configurations"].values():
        if "architecture" not in config:
            continue
        architecture = config.pop("architecture")
        kwargs = architecture["arch_kwargs"]
        residual = "n_blocks_per_stage" in kwargs
        config |= {
            "UNet_class_name": "ResidualEncoderUNet" if residual else "PlainConvUNet",
            "UNet_base_num_features": kwargs["features_per_stage"][0],
            "unet_max_num_features": max(kwargs["features_per_stage"]),
            "n_conv_per_stage_encoder": kwargs["n_blocks_per_stage" if residual else "n_conv_per_stage"],
            "n_conv_per_stage_decoder": kwargs["n_conv_per_stage_decoder"],
            "num_pool_per_axis": [len(kwargs["strides"]) - 1] * len(config["patch_size"]),
            "pool_op_kernel_sizes": kwargs["strides"],
            "conv_kernel_sizes": kwargs["kernel_sizes"],
        }
    plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")
    return plans


def modality(content: dict) -> dict:
    return {("modality" if key == "channel_names" else key): value for key, value in content.items()}
