"""The plans section "losses": what it accepts, and the one line it answers with otherwise."""

import pytest
from helpers import plans

from nnunet_kd.config.run import read_config
from nnunet_kd.config.stage_losses import example_geometry, read_losses
from nnunet_kd.losses.registry import LOSSES
from nnunet_kd.utils.errors import KDError


def test_options_weight_and_target_are_told_apart():
    (found,) = read_losses({"bottleneck:encoder2": {"at": {"p": 4, "weight": 7, "target": "anchor", "until": 0.5}}})
    assert (found.name, found.weight, found.target, found.options, found.until) == ("at", 7.0, "anchor", {"p": 4}, 0.5)
    assert found.sides == ("bottleneck", "encoder2")


def test_the_published_weight_is_the_default_and_null_takes_a_loss_out():
    found = read_losses({"logits": {"cwd-logits": {}, "dist": None}, "bottleneck": None})
    assert [(s.name, s.weight) for s in found] == [("cwd-logits", LOSSES["cwd-logits"].weight)]


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"kd"}))
def test_every_loss_can_be_named(name):
    pairs = getattr(LOSSES[name], "pairs", False)
    place = "logits" if LOSSES[name].reads == "logits" else "encoder0+encoder1" if pairs else "decoder0"
    (found,) = read_losses({place: {name: {}}})
    assert found.weight == LOSSES[name].weight > 0
    LOSSES[name](**example_geometry(LOSSES[name]))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"encoder": {"at": {}}}, 'unknown place "nnunet_kd.losses.encoder"'),
        ({"encoder0:encoder1:encoder2": {"at": {}}}, "unknown place"),
        ({"encoder0+encoder1:encoder0": {"fsp": {}}}, "on both sides"),
        ({"bottleneck": {}}, "must name losses"),
        ({"bottleneck": ["at"]}, "must name losses"),
        ({"bottleneck": {"att": {}}}, 'did you mean "at"'),
        ({"bottleneck": {"at": 3}}, "must be an object"),
        ({"logits": {"at": {}}}, "at compares features"),
        ({"bottleneck": {"dist": {}}}, "dist compares logits"),
        ({"logits": {"kd": {}}}, "terms.kd"),
        ({"bottleneck": {"fsp": {}}}, "name two stages"),
        ({"encoder0+encoder1": {"at": {}}}, "name one stage"),
        ({"bottleneck": {"at": {"q": 2}}}, 'unknown key "nnunet_kd.losses.bottleneck.at.q"'),
        ({"bottleneck": {"at": {"wieght": 2}}}, 'did you mean "weight"'),
        ({"bottleneck": {"at": {"weight": "2"}}}, "must be a number"),
        ({"bottleneck": {"at": {"weight": True}}}, "must be a number"),
        ({"bottleneck": {"at": {"weight": 0}}}, "must be a number in"),
        ({"bottleneck": {"at": {"target": "both"}}}, "use one of anchor, view"),
        ({"bottleneck": {"at": {"until": 0}}}, "until.*fraction of the training"),
        ({"bottleneck": {"at": {"until": 1.5}}}, "until.*fraction of the training"),
        ({"bottleneck": {"at": {"until": True}}}, "until.*fraction of the training"),
        ({"bottleneck": {"at": {"p": "2"}}}, "must be of type"),
        ({"bottleneck": {"at": {"p": -1}}}, "nnunet_kd.losses.bottleneck.at"),
        ({"logits": {"cwd-logits": {"temperature": 0.0}}}, "nnunet_kd.losses.logits.cwd-logits"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(section, message):
    with pytest.raises(KDError, match=message) as error:
        read_losses(section)
    assert "\n" not in str(error.value)


def section(**more):
    return plans(preset="kd", **more)


def test_a_loss_needs_a_teacher():
    content = section(losses={"logits": {"dist": {}}}, terms={"kd": None})
    content["nnunet_kd"].pop("teacher")
    with pytest.raises(KDError, match=r"losses.logits.dist.*need a teacher"):
        read_config(content, None, "test")


def test_target_anchor_needs_views():
    with pytest.raises(KDError, match="losses.logits.dist.target"):
        read_config(section(losses={"logits": {"dist": {"target": "anchor"}}}), None, "test")


def test_views_may_be_read_by_a_loss_alone():
    views = {"preset": "light", "count": 1, "student_loss": "anchor"}
    config = read_config(section(losses={"logits": {"dist": {}}}, terms={"kd": None}, views=views), None, "test")
    assert config.distils == ["losses.logits.dist"]
    with pytest.raises(KDError, match="nothing reads them"):
        read_config(section(terms={"kd": None}, views=views), None, "test")


def test_several_folds_can_be_distilled_through_logits_only():
    def folds(fold, **more):
        content = section(**more)
        content["nnunet_kd"]["teacher"]["fold"] = fold
        return read_config(content, None, "test")

    assert folds([0, 1], losses={"logits": {"dist": {}}}).teacher.folds == [0, 1]
    with pytest.raises(KDError, match="names 2 folds.*losses.bottleneck"):
        folds([0, 1], losses={"bottleneck": {"at": {}}})
    with pytest.raises(KDError, match="names 2 folds.*MSAN"):
        folds([0, "same"], msan={})
    for bad in ([], [0, 0], [0, "one"], [True], "one"):
        with pytest.raises(KDError, match=r"teacher\.fold"):
            folds(bad)


def test_the_undistilled_control_reads_no_losses():
    content = plans(preset="student", losses={"bottleneck": {"at": {}}})
    assert read_config(content, None, "test").losses is None
