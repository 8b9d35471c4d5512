"""Labels on a feature's grid, class means, lengths."""

import pytest
import torch
import torch.nn.functional as F
from annotated import labels
from loss_checks import wave

from nnunet_kd.losses.labels import class_directions, class_masks, inverse_length, resize_labels


@pytest.mark.parametrize(
    ("old", "new"), [((16, 16), (8, 8)), ((9, 6), (3, 4)), ((4, 4), (7, 9)), ((8, 6, 4), (4, 3, 4)), ((5, 5, 5), (2, 3, 5))]
)
def test_resized_as_by_torch(old, new):
    target = labels(old, 3)
    expected = F.interpolate(target.unsqueeze(1).double(), new, mode="nearest").squeeze(1).long()
    assert torch.equal(resize_labels(target, new), expected)


def test_labels_on_the_grid_stay_as_they_are():
    target = labels((4, 5), 3)
    assert resize_labels(target, (4, 5)) is target


def test_masks_are_one_hot_and_leave_out_what_is_no_class():
    target = torch.tensor([[[0, 1, -1], [2, 3, 1]]])
    masks = class_masks(target, 3, torch.zeros(1, 5, 2, 3, dtype=torch.float64))
    assert masks.dtype == torch.float64
    assert masks.tolist() == [[[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 1], [0, 0, 0, 1, 0, 0]]]


def test_masks_of_labels_that_do_not_fit_are_refused():
    features = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="pass target"):
        class_masks(None, 2, features)
    with pytest.raises(ValueError, match=r"\(1, 4, 4\).*\(2, 3, 4, 4\)"):
        class_masks(torch.zeros(1, 4, 4), 2, features)
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\) must be"):
        class_masks(torch.zeros(2, 1, 4, 4), 2, features)


def test_class_directions_are_those_of_the_means():
    features, target = wave((2, 4, 3, 5), 1.3, 0.11, 1.0), labels((3, 5), 3)
    target[1][target[1] == 2] = 0
    got = class_directions(features.flatten(2), class_masks(target, 3, features))
    for b in range(2):
        for c in range(3):
            where = target[b] == c
            expected = F.normalize(features[b][:, where].mean(1), dim=0) if where.any() else torch.zeros(4).double()
            torch.testing.assert_close(got[b, c], expected)


def test_inverse_length_of_nothing_is_zero_with_a_gradient_of_zero():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-9, 0.0]], requires_grad=True)
    inverse = inverse_length(vectors, 1)
    torch.testing.assert_close(inverse, torch.tensor([[0.2], [0.0], [0.0]]))
    inverse.sum().backward()
    torch.testing.assert_close(vectors.grad, torch.tensor([[-3 / 125, -4 / 125], [0.0, 0.0], [0.0, 0.0]]))
