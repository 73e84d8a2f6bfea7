"""Views of images that return."""

from functools import partial

import torch

from metah_train.methods.base import augment
from metah_train.methods.views import recurring

moved = partial(augment, noise=0.1, shift=2, warp=1.5)


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_views_recur_whatever_the_batch() -> None:
    x = images(5)
    torch.manual_seed(1)
    seen = [{view.numpy().tobytes() for view in column} for column in zip(*drawn(x), strict=True)]
    assert [len(views) for views in seen] == [3] * 5
    torch.manual_seed(2)
    for row in (3, 0):
        for (view,) in drawn(x[row : row + 1].clone()):
            assert view.numpy().tobytes() in seen[row]
    assert not set.union(*seen[1:]) & seen[0]


def drawn(x: torch.Tensor) -> list[torch.Tensor]:
    return [recurring(x, 3, moved) for _ in range(40)]


def test_which_view_is_the_drawing_of_the_generator_which_goes_on() -> None:
    x = images(4)
    torch.manual_seed(7)
    torch.randint(3, (4,))
    due = torch.rand(3)
    torch.manual_seed(7)
    one = recurring(x, 3, moved)
    assert torch.equal(torch.rand(3), due)
    torch.manual_seed(7)
    assert torch.equal(recurring(x, 3, moved), one)
    assert not torch.equal(one, x)


def test_no_images() -> None:
    assert recurring(images(0), 2, moved).shape == (0, 3, 16, 16)
