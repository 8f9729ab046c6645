import itertools
import math

import pytest

from nemo_minordpo.core.samples import majority_share, pass_at_k, sizes_of_k


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    for n in range(1, 7):
        for c in range(n + 1):
            right = [place < c for place in range(n)]
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(right, k))
                expected = sum(map(any, subsets)) / len(subsets)
                assert pass_at_k(num_samples=n, num_right=c, k=k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_k_is_unbiased():
    """The expected estimate from n draws with chance p is 1 - (1 - p)^k, unlike that of 1 - (1 - c/n)^k."""
    n, k, p = 5, 3, 0.3
    chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    expected = sum(chance * pass_at_k(num_samples=n, num_right=c, k=k) for c, chance in enumerate(chances))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize(
    ("answers", "share"),
    [
        (["7", "7", "8"], 1.0),
        (["8", "8", "7"], 0.0),
        (["7", "8"], 0.5),
        (["7", "8", "9", "9", "7", "1"], 0.5),
        (["14/2", "7", "8", "8", "1"], 0.5),  # 14/2 and 7 are one number
        ([None, None, "7"], 1.0),  # no answer has no vote
        ([None], 0.0),
    ],
)
def test_majority_share(answers, share):
    assert majority_share(answers, "7") == share


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (10, [1, 2, 4, 8, 10])])
def test_sizes_of_k(count, sizes):
    assert sizes_of_k(count) == sizes
