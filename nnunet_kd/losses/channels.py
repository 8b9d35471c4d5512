"""What the losses on features share: adapters between unequal numbers of channels, and the check of the shapes."""

from __future__ import annotations

from torch import Tensor, nn


def match_channels(student_channels: int, teacher_channels: int, dims: int) -> nn.Module:
    """A learned map from the student's channels to the teacher's: nothing if they agree, else :func:`pointwise`.

    Returns:
        A module `(B, K_s, *S) -> (B, K_t, *S)`: ``nn.Identity`` where K_s = K_t.

    Raises:
        ValueError: as :func:`pointwise`.
    """
    if student_channels == teacher_channels > 0:
        return nn.Identity()
    return pointwise(student_channels, teacher_channels, dims)


def pointwise(student_channels: int, teacher_channels: int, dims: int) -> nn.Module:
    """A 1x1 convolution without bias, `(B, K_s, *S) -> (B, K_t, *S)`.

    Args:
        student_channels, teacher_channels: K_s and K_t, at least 1.
        dims: 2 or 3, the number of spatial axes of the features.

    Raises:
        ValueError: a number of channels below 1, dims other than 2 or 3.
    """
    if dims not in (2, 3):
        raise ValueError(f"dims must be 2 or 3, not {dims}")
    if student_channels < 1 or teacher_channels < 1:
        raise ValueError(f"channels must be at least 1, not {student_channels} (student) and {teacher_channels} (teacher)")
    return (nn.Conv2d if dims == 2 else nn.Conv3d)(student_channels, teacher_channels, 1, bias=False)


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless the logits of both networks have one shape."""
    if student.shape != teacher.shape:
        raise ValueError(f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} differ")


def check_features(
    student: Tensor, teacher: Tensor, student_channels: int | None = None, teacher_channels: int | None = None
) -> None:
    """Refuse features that do not fit each other, or not the numbers of channels that a loss was built for.

    Args:
        student: `(B, K_s, *S)`.
        teacher: `(B, K_t, *S)` with the same B and S.
        student_channels, teacher_channels: what K_s and K_t have to be; ``None``: anything.

    Raises:
        ValueError: naming both shapes.
    """
    shapes = f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)}"
    if student.ndim not in (4, 5) or student.shape[:1] + student.shape[2:] != teacher.shape[:1] + teacher.shape[2:]:
        raise ValueError(f"{shapes} must be (B, K, *S) of 2 or 3 spatial axes, with the same B and S")
    if student_channels not in (None, student.shape[1]) or teacher_channels not in (None, teacher.shape[1]):
        raise ValueError(f"{shapes} do not fit a loss for {student_channels} and {teacher_channels} channels")
