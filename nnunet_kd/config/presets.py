"""Named settings of a run: the controls, the paper's ablation columns, the full method, and the literature's losses.

Each preset is a part of the plans section "nnunet_kd"; the section overrides it key by key. ``gkd`` is the full method in this
project's form: DCGD (``intra``, ``inter``) and DICD (``cross``) train the student, through MSANs that ACT trains. ``paper``
keeps the published shapes (vector MSAN at the bottleneck, frozen after ACT, no logit KD) with RECONSTRUCTED weights,
``cross-view`` is an earlier form of all terms.
``kd+adjusted+mirrored`` is logit distillation that won the measurement of 1,200 iterations in docs/results.md (after 2,500 it
leads by less). ALIASES are further names: of a preset, or of a preset with settings.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from nnunet_kd.config.validation import merge

_PAPER: dict[str, Any] = {
    "views": {"preset": "light", "count": 2, "student_loss": "anchor"},
    "msan": {"kind": "vector", "stages": ["bottleneck"], "after_act": "frozen"},
    "act": {},
}
_INTRA: dict[str, Any] = {"intra": {"weight": 1.0}}
_INTER: dict[str, Any] = {"inter": {"weight": 1.0}}
_CROSS: dict[str, Any] = {"cross": {"weight": 1.0, "views": "same"}}
_STRONG: dict[str, Any] = {"preset": "strong", "count": 1, "student_loss": "anchor"}
_SPATIAL: dict[str, Any] = {"kind": "spatial", "stages": ["bottleneck"], "dim": 128, "after_act": "joint"}
_ANCHOR_KD: dict[str, Any] = {"kd": {"weight": 1.0, "target": "anchor"}}
_CLASS_GRAPH: dict[str, Any] = {"weight": 0.05, "nodes": "class", "centred": True, "target": "anchor"}
# ours. The MSANs are a probe for FSD: they learn from the features, nothing learns from them
_PROBED: dict[str, Any] = {
    "views": _STRONG,
    "msan": _SPATIAL,
    "act": {"consistency": 0.0, "decoded": 0.0, "share": 0.25},
}

PRESETS: dict[str, dict[str, Any]] = {
    # controls
    "student": {},
    "views-only": {"views": {**_STRONG, "student_loss": "all"}},
    "kd": {"terms": {"kd": {"weight": 1.0}}},
    "kd+views": {"views": _STRONG, "terms": _ANCHOR_KD},
    "kd+mirrored": {"views": _STRONG, "terms": _ANCHOR_KD, "mirrored_teacher": True},
    "kd+adjusted+mirrored": {
        **_PROBED,
        "terms": _ANCHOR_KD,
        "logit_adjustment_views": 1.0,
        "mirrored_teacher": True,
    },
    # the paper's ablation columns
    "intra": {**_PAPER, "terms": _INTRA},
    "inter": {**_PAPER, "terms": _INTER},
    "cross": {**_PAPER, "terms": _CROSS},
    "intra+inter": {**_PAPER, "terms": {**_INTRA, **_INTER}},
    "paper": {**_PAPER, "terms": {**_INTRA, **_INTER, **_CROSS}},
    # the full method: every one of its terms trains the student, at about a fifth of the gradient of nnU-Net's loss on vessels
    "gkd": {
        "views": _STRONG,
        "msan": {"kind": "map", "stages": ["all"], "dim": 16, "after_act": "joint"},
        "act": {"alignment": 1.0, "decoded": 0.0, "share": 0.25},
        "terms": {
            **_ANCHOR_KD,
            "intra": _CLASS_GRAPH,
            "inter": _CLASS_GRAPH,
            "cross": {"weight": 0.2, "views": "cross", "share": 0.25},
        },
    },
    "cross-view": {
        "views": {**_STRONG, "student_loss": "all"},
        "msan": _SPATIAL,
        "act": {},
        "terms": {
            **_ANCHOR_KD,
            "intra": {"weight": 0.1},
            "inter": {"weight": 0.1},
            "cross": {"weight": 0.3, "views": "cross"},
        },
    },
    # the literature's losses with their published weights at our reduction, at the nearest place a U-Net has: features of
    # the backbone are the encoder's, features that enter the classifier "decoder0" (docs/methods.md)
    "at": {"losses": {"bottleneck": {"at": {}}}},
    "fitnets": {"losses": {"bottleneck": {"fitnets": {}}}},
    "fsp": {"losses": {"all": {"fsp": {}}}},
    "skd": {"losses": {"logits": {"skd-pixelwise": {}}, "decoder0": {"skd-pairwise": {}}}},
    "ifvd": {"terms": {"kd": {"weight": 5.0}}, "losses": {"decoder0": {"ifvd": {}}}},
    "cwd": {"losses": {"logits": {"cwd-logits": {}}}},
    "dist": {"losses": {"logits": {"dist": {}}}},
    "dml": {"losses": {"logits": {"dml": {}}}},
    "emkd": {"terms": {"kd": {"weight": 0.1, "temperature": 4.0}}, "losses": {"all": {"imd": {}}, "decoder0": {"rad": {}}}},
    "cirkd": {"terms": {"kd": {"weight": 1.0}}, "losses": {"decoder0": {"cirkd": {}, "cirkd-memory": {}}}},
}

_UNADJUSTED: dict[str, Any] = {"preset": "kd+adjusted+mirrored", "logit_adjustment_views": None, "mirrored_teacher": None}

# other names in plans and comparisons, which keep their meaning: of a preset, or of a preset with these settings
ALIASES: dict[str, dict[str, Any]] = {
    "all": {"preset": "paper"},
    "default": {"preset": "kd+adjusted+mirrored"},
    "adjusted": {**_UNADJUSTED, "logit_adjustment": 0.5},
    "balanced": {**_UNADJUSTED, "terms": {"kd": {"balance": 1.0}}},
    "dice": {
        **_UNADJUSTED,
        "terms": {"kd": {"balance": 0.5}},
        "losses": {"logits": {"dml": {"weight": 1.0, "target": "anchor"}}},
    },
}
NAMES = (*PRESETS, *ALIASES)


def full_name(name: str) -> str:
    """The preset that a name stands for; of an alias with settings of its own, the alias."""
    return ALIASES[name]["preset"] if len(ALIASES.get(name, ())) == 1 else name


def settings_of(name: str) -> dict[str, Any]:
    """The part of the plans section that a preset or an alias stands for."""
    if name in PRESETS:
        return deepcopy(PRESETS[name])
    overrides = {key: value for key, value in ALIASES[name].items() if key != "preset"}
    return merge(PRESETS[ALIASES[name]["preset"]], overrides)
