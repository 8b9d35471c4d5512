"""The learning rate that a student starts with where none is given."""

from __future__ import annotations

SMALL = 0.1  # of the teacher's parameters: up to this part a student counts as small
NNUNET = 0.01  # nnU-Net's own, for stochastic gradient descent
FAST = 0.1  # what small students learn best with (docs/light-students.md, "The learning rate")


def student_learning_rate(teachers: float, student: int, teacher: int) -> tuple[float, str]:
    """A student's initial learning rate, and in a few words why.

    A small student with nnU-Net's 0.01 is far from trained when its schedule ends. Ten times that was measured to be better on
    eye vessels, polyps and abdominal organs, with the undistilled student alone.

    Args:
        teachers: the teacher's initial learning rate.
        student, teacher: numbers of parameters.
    """
    share = student / teacher
    part = f"the student has {100 * share:.1f}% of its teacher's parameters"
    if share > SMALL:
        return teachers, f"its teacher's: {part}"
    if teachers < NNUNET:
        # of another optimizer, AdamW say, where 0.1 would end in NaN
        return teachers, f"its teacher's, which is below nnU-Net's {NNUNET:g}"
    if teachers >= FAST:
        return teachers, "its teacher's"
    return FAST, f"{part}, and so small ones learn too slowly at its teacher's {teachers:g}"
