"""The plans section "losses": what it accepts, and the one line it answers with otherwise."""

import pickle

import pytest
from helpers import plans

from nnunet_kd.config.run import read_config
from nnunet_kd.config.stage_losses import TERMS, options_class, read_losses
from nnunet_kd.losses.registry import LOSSES
from nnunet_kd.utils.errors import KDError

PLACES = {"logits": "logits", "features": "decoder0", "pairs": "encoder0+encoder1"}


def test_options_weight_and_target_are_told_apart():
    (loss,) = read_losses({"bottleneck:encoder2": {"at": {"p": 4, "weight": 7, "target": "anchor", "until": 0.5}}})
    assert (loss.name, loss.weight, loss.target, loss.options.keywords, loss.options.until) == (
        "at",
        7.0,
        "anchor",
        {"p": 4},
        0.5,
    )
    assert loss.sides == ("bottleneck", "encoder2")
    assert (loss.path, loss.key) == ("losses.bottleneck:encoder2.at", "at@bottleneck:encoder2")


def test_the_published_weight_is_the_default_and_null_takes_a_loss_out():
    losses = read_losses({"logits": {"cwd-logits": {}, "dist": None}, "bottleneck": None})
    assert [(s.name, s.weight) for s in losses] == [("cwd-logits", LOSSES["cwd-logits"].weight)]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_can_be_named(name):
    if name in TERMS:
        loss = next(loss for loss in read_config(plans(), "cross-view", "test").active_losses if loss.name == name)
    else:
        (loss,) = read_losses({PLACES[LOSSES[name].reads]: {name: {}}})
        assert loss.weight == LOSSES[name].weight > 0
        assert loss.options.keywords == {key: p.default for key, p in LOSSES[name].settings().items()}
    assert isinstance(loss.options, options_class(name))
    LOSSES[name].example()


@pytest.mark.parametrize("name", TERMS)
def test_a_terms_options_have_the_defaults_of_its_loss(name):
    options = options_class(name)()
    assert options.weight == LOSSES[name].weight
    for key, parameter in LOSSES[name].settings().items():
        assert getattr(options, key) in (parameter.default, None), key  # None: the loss's own


@pytest.mark.parametrize("name", LOSSES)
def test_the_weight_of_every_loss_has_one_course(name):
    options = options_class(name)(weight=2.0, until=0.9)
    at = [options.weight_at(progress, start=0.1, ramp=0.2) for progress in (0.05, 0.1, 0.2, 0.5, 0.9, 1.0)]
    assert at == pytest.approx([0.0, 0.0, 2 * 0.875 * 0.5, 2 * 0.5, 0.0, 0.0])
    assert options_class(name)(weight=2.0).weight_at(0.9, start=0.1, ramp=0) == 2.0


def test_a_term_may_fall_to_zero_but_not_before_it_starts():
    config = read_config(plans(terms={"kd": {"until": 0.5}}), "cross-view", "test")
    assert {loss.key: loss.start for loss in config.active_losses} == {"kd": 0.0, "intra": 0.3, "inter": 0.3, "cross": 0.3}
    assert config.active_losses[0].weight_at(0.25, config.ramp) == 0.5
    with pytest.raises(KDError, match=r'"nnunet_kd.terms.intra.until" is 0.3, but it starts at "act.end", 0.3'):
        read_config(plans(terms={"intra": {"until": 0.3}}), "cross-view", "test")


@pytest.mark.parametrize("preset", ["kd", "student", "kd+views", "at"])
def test_kd_may_stand_under_the_logits(preset):
    rest = {"decoder0": {"at": {}}}
    options = {"weight": 2, "temperature": 3.0}
    one = read_config(plans(terms={"kd": options}, losses=rest), preset, "test")
    other = read_config(plans(losses={"logits": {"kd": options}, **rest}), preset, "test")
    assert one == other and (preset == "student" or one.terms.kd.temperature == 3.0)
    assert read_config(plans(losses={"logits": {"kd": None, "dist": {}}}), preset, "test").terms.kd is None
    alone = read_config(plans(losses={"logits": {"kd": {}}}), "kd", "test")
    assert alone == read_config(plans(terms={"kd": {}}), "kd", "test") and alone.losses is None


def test_settings_travel_to_other_processes():
    config = read_config(plans(), "cirkd", "test")
    assert config.active_losses
    assert pickle.loads(pickle.dumps(config)).active_losses == config.active_losses


def test_kd_in_both_places_is_an_error():
    with pytest.raises(KDError, match=r"losses.logits.kd. and .nnunet_kd.terms.kd. are the same loss"):
        read_config(plans(losses={"logits": {"kd": {}}}, terms={"kd": None}), "kd", "test")
    for bad, says in (({"terms": 3}, "nnunet_kd.terms"), ({"losses": {"logits": {"kd": {"tau": 1}}}}, "terms.kd.tau")):
        with pytest.raises(KDError, match=says):
            read_config(plans(**{"losses": {"logits": {"kd": {}}}} | bad), "kd", "test")


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
        ({"bottleneck": {"intra": {}}}, 'intra is the term "nnunet_kd.terms.intra"'),
        ({"bottleneck": {"fsp": {}}}, "name two stages"),
        ({"encoder0+encoder1": {"at": {}}}, "name one stage"),
        ({"bottleneck": {"at": {"q": 2}}}, 'unknown key "nnunet_kd.losses.bottleneck.at.q"'),
        ({"bottleneck": {"at": {"wieght": 2}}}, 'did you mean "weight"'),
        ({"bottleneck": {"at": {"weight": "2"}}}, "losses.bottleneck.at.weight.*must be of type float"),
        ({"bottleneck": {"at": {"weight": True}}}, "losses.bottleneck.at.weight.*must be of type float"),
        ({"bottleneck": {"at": {"weight": 0}}}, "losses.bottleneck.at.weight.*must lie in"),
        ({"bottleneck": {"at": {"target": "both"}}}, "use one of anchor, view"),
        ({"bottleneck": {"at": {"until": 0}}}, "until.*fraction of the training"),
        ({"bottleneck": {"at": {"until": 1.5}}}, "until.*fraction of the training"),
        ({"bottleneck": {"at": {"until": True}}}, "until.*must be of type float"),
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
