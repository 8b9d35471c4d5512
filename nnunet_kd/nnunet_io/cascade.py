"""nnU-Net's cascade: which model's predictions a second stage (3d_cascade_fullres) reads, and whether they are there.

nnU-Net takes them from the model of the same trainer and plans name. A student's two stages have plans of their own, so the
plans section may name another model as "previous_stage".
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nnunet_kd.nnunet_io.configurations import resolved_configuration
from nnunet_kd.nnunet_io.model_folder import ModelFolder, read_model_folder, resolve_folder
from nnunet_kd.utils.errors import KDError

_WRITTEN_BY = "predicted_next_stage"  # nnU-Net's folder beside a first stage's folds


def predictions_of(previous_stage: str | Path, configuration: str) -> Path:
    """Where nnU-Net puts what a first stage predicts for the second stage ``configuration``."""
    return resolve_folder(previous_stage) / _WRITTEN_BY / configuration


def check_predictions(folder: str | Path, cases: Iterable[str]) -> None:
    """Make sure that the first stage has predicted every case.

    Args:
        folder: as :func:`predictions_of` says, of nnU-Net's files CASE.b2nd or CASE.npz.

    Raises:
        KDError: cases are missing; names the command that predicts them.
    """
    folder, cases = Path(folder), sorted(set(cases))
    predicted = {file.stem for file in folder.glob("*")}
    missing = [case for case in cases if case not in predicted]
    if not missing:
        return
    model = folder.parents[1]
    trainer, plans, configuration = (*model.name.split("__"), "?", "?", "?")[:3]
    raise KDError(
        f"{len(missing)} of {len(cases)} cases ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}) have no "
        f"prediction of the previous stage in {folder}. nnU-Net writes them at the end of a training, for that fold's "
        f"validation cases: run `nnUNetv2_train {model.parent.name} {configuration} FOLD -p {plans} -tr {trainer}` for every "
        "fold (with --val where it is trained), or plan with another --previous-stage"
    )


def find_previous_stage(stage: str, given: str | Path | None, teacher: ModelFolder | None) -> Path:
    """The model folder of the first stage.

    Args:
        stage: its configuration, as the second stage's plans call it (3d_lowres).
        given: the user's choice. Without one a student reads what its teacher read, if that is a second stage too.
        teacher: the teacher's model folder; None for a teacher's own plans.

    Raises:
        KDError: nothing to choose, no such folder, or a model of another configuration.
    """
    section = teacher.plans.get("nnunet_kd", {}) if teacher is not None else {}
    if given is None:
        given = section.get("previous_stage")
    if given is None and teacher is not None and len(teacher.path.name.split("__")) == 3:
        trainer, plans, configuration = teacher.path.name.split("__")
        beside = teacher.path.with_name(f"{trainer}__{plans}__{stage}")
        if resolved_configuration(teacher.plans, configuration).get("previous_stage") == stage and beside.is_dir():
            given = beside
    if given is None:
        raise KDError(
            f"--previous-stage FOLDER is missing: name the trained {stage} model (TRAINER__PLANS__{stage}) whose predictions "
            "this second stage of a cascade reads"
        )
    model = read_model_folder(given)
    if model.configuration != stage:
        raise KDError(
            f"--previous-stage {model.path} is a {model.configuration} model, the plans ask for {stage}: name one of those"
        )
    return model.path


def first_stage_of(model: ModelFolder) -> Path | None:
    """The first stage's model folder of a trained second stage: the one its plans name, or nnU-Net's. None for other models.

    Raises:
        KDError: a second stage whose first one is not to be found (an export names none).
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    stage = PlansManager(model.plans).get_configuration(model.configuration).previous_stage_name
    if stage is None:
        return None
    try:
        return find_previous_stage(stage, None, model)
    except KDError as error:
        raise KDError(
            f"{model.path} is the second stage of a cascade and its first stage ({stage}) is not to be found "
            f"({error}): name nnU-Net's training folder, whose plans name it, or put the {stage} model beside it"
        ) from None
