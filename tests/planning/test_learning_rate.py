"""The learning rate that a student's plans take where none is given."""

from __future__ import annotations

import pytest

from nnunet_kd.planning.learning_rate import student_learning_rate
from nnunet_kd.planning.plans import plan_student
from nnunet_kd.planning.requests import StudentRequest


@pytest.mark.parametrize(
    ("teachers", "student", "rate", "why"),
    [
        (0.01, 21, 0.1, "2.1% of its teacher's parameters, and so small ones learn too slowly at its teacher's 0.01"),
        (0.05, 100, 0.1, "10.0% of"),
        (0.01, 101, 0.01, "its teacher's: the student has 10.1%"),
        (0.01, 500, 0.01, "its teacher's: the student has 50.0%"),
        (0.2, 21, 0.2, "its teacher's"),
        (3e-4, 21, 3e-4, "below nnU-Net's 0.01"),  # AdamW's, Primus's
    ],
)
def test_a_small_student_learns_faster_and_plan_says_why(teachers, student, rate, why):
    found, reason = student_learning_rate(teachers, student, 1000)
    assert found == rate and why in reason


def test_plans_take_the_rate_of_the_students_size_unless_one_is_given(tiny_teacher):
    def planned(name: str, **settings):
        done = plan_student(StudentRequest(950, "2d", tiny_teacher, min_features=1, name=name, **settings))
        return done.plans["nnunet_kd"]["schedule"]["initial_lr"], done.rate_reason

    small, reason = planned("RATEsmall", width=0.1)
    assert small == 0.1 and "% of its teacher's parameters, and so small ones" in reason
    assert planned("RATEwide", width=0.7)[0] == 0.01
    assert planned("RATEgiven", width=0.1, initial_lr=0.02) == (0.02, "as given")
