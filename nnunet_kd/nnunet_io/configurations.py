"""One configuration of nnU-Net's plans: taken out whole, and its network and patch changed."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.utils.errors import KDError


def configurations_of(plans: dict, configuration: str, preprocessed: Path | None = None) -> dict[str, dict]:
    """The configuration, and the second stages of its cascade, for which nnU-Net's final validation predicts.

    Of those only what is preprocessed: nnU-Net would fail on others at the end of the training.

    Args:
        plans: content of a plans file.
        preprocessed: the data set's folder; None: the configuration alone.

    Raises:
        KDError: no such configuration.
    """
    config = flat_configuration(plans, configuration)
    stages = config.pop("next_stage", None) or []
    following = {}
    for stage in [stages] if isinstance(stages, str) else stages:
        flat = flat_configuration(plans, stage) if stage in plans["configurations"] else {}
        if flat and preprocessed is not None and (preprocessed / flat["data_identifier"]).is_dir():
            following[stage] = flat
    if following:
        config["next_stage"] = list(following)
    return {configuration: config, **following}


def flat_configuration(plans: dict, configuration: str) -> dict:
    """The configuration with its inheritance resolved, so that a changed architecture replaces nothing by accident."""
    configurations = plans["configurations"]
    if configuration not in configurations:
        raise KDError(
            f"configuration {configuration} is not in plans {plans['plans_name']} of {plans['dataset_name']}: use one of "
            f"{', '.join(configurations)}"
        )
    return resolved_configuration(plans, configuration)


def resolved_configuration(plans: dict, configuration: str) -> dict:
    """One configuration as nnU-Net reads it, whatever the age of the plans: the only safe way to a key of it.

    A configuration may leave keys to the one that it inherits from; plans of before nnU-Net 2.5 have no "architecture", which
    nnU-Net puts together from UNet_class_name and its like. A copy, without "inherits_from".

    Args:
        plans: content of a plans file that has the configuration; left as it is.
    """
    config = deepcopy(PlansManager(deepcopy(plans)).get_configuration(configuration).configuration)
    config.pop("inherits_from", None)
    return config


def features_of(config: dict) -> list[int]:
    """The network's features per stage. Raises KDError if it is no U-Net."""
    kwargs = config["architecture"]["arch_kwargs"]
    if "features_per_stage" not in kwargs:
        raise KDError(
            f"a {config['architecture']['network_class_name'].split('.')[-1]} has no features per stage to change: name plans "
            "of a U-Net of the same data with --base-plans"
        )
    return kwargs["features_per_stage"]


def set_patch_size(config: dict, patch_size: list[int]) -> None:
    """Set the patch size, and stages, strides and kernels by nnU-Net's own rule for it."""
    if len(patch_size) != len(config["patch_size"]):
        raise KDError(f"--patch-size needs {len(config['patch_size'])} numbers for this configuration, got {patch_size}")
    if min(patch_size) < 1:
        raise KDError(f"--patch-size {patch_size} is too small: every axis needs at least 1 pixel")
    kwargs = config["architecture"]["arch_kwargs"]
    # nnU-Net's rule: halve an axis while 4 pixels remain at the bottleneck
    _, strides, kernels, fitted, _ = get_pool_and_conv_props(config["spacing"], patch_size, 4, 999999)
    stages = len(strides)
    if stages < 2:  # one thin axis is fine: nnU-Net itself plans 4 x 40 x 48 for thin volumes
        raise KDError(f"--patch-size {patch_size} is too small to be halved along any axis: give 16 pixels along one of them")
    old = features_of(config)
    base, top = old[0], max(old)
    config["patch_size"] = [int(p) for p in fitted]
    kwargs["n_stages"] = stages
    kwargs["strides"] = [[int(i) for i in s] for s in strides]
    kwargs["kernel_sizes"] = [[int(i) for i in k] for k in kernels]
    kwargs["features_per_stage"] = [min(base * 2**i, top) for i in range(stages)]
    for key, length in (("n_conv_per_stage", stages), ("n_blocks_per_stage", stages), ("n_conv_per_stage_decoder", stages - 1)):
        if key in kwargs:
            kwargs[key] = (list(kwargs[key]) + [kwargs[key][-1]] * length)[:length]


def set_features(config: dict, features: list[int]) -> None:
    """Set the features per stage; fewer entries than stages make a shallower network."""
    kwargs = config["architecture"]["arch_kwargs"]
    stages = len(features)
    features_of(config)
    if not 2 <= stages <= kwargs["n_stages"] or min(features) < 1:
        raise KDError(f"features {features}: give 2 to {kwargs['n_stages']} positive numbers, one per stage")
    kwargs["n_stages"] = stages
    kwargs["features_per_stage"] = [int(f) for f in features]
    for key in ("strides", "kernel_sizes", "n_conv_per_stage", "n_blocks_per_stage"):
        if key in kwargs:
            kwargs[key] = kwargs[key][:stages]
    # the decoder's list starts at the bottleneck: keep the entries of the remaining, higher-resolution stages
    kwargs["n_conv_per_stage_decoder"] = kwargs["n_conv_per_stage_decoder"][-(stages - 1) :]


def set_convs(config: dict, convs: int) -> None:
    """Set the convolutions per stage, of a residual encoder the blocks (its decoder gets at most what it had)."""
    kwargs = config["architecture"]["arch_kwargs"]
    stages = len(features_of(config))
    if convs < 1:
        raise KDError(f"--convs {convs} must be at least 1")
    if "n_blocks_per_stage" in kwargs:
        kwargs["n_blocks_per_stage"] = [convs] * stages
        kwargs["n_conv_per_stage_decoder"] = [min(convs, n) for n in kwargs["n_conv_per_stage_decoder"]]
    else:
        kwargs["n_conv_per_stage"] = [convs] * stages
        kwargs["n_conv_per_stage_decoder"] = [convs] * (stages - 1)
