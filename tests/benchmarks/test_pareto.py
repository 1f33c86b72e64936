"""The picture that people decide by shows every scored form, and joins those that no other beats."""

from benchmarks.pareto import front, spline_pareto
from benchmarks.tables.common import read


def test_the_front_holds_what_nothing_beats() -> None:
    assert front([3, 1, 2, 4, 1], [0.8, 0.5, 0.7, 0.75, 0.4]) == [(1, 0.5), (2, 0.7), (3, 0.8)]


def test_every_scored_form_is_a_point_at_its_cost() -> None:
    forms = read("spline_forms")
    scored = forms[(forms["dice"] != "") & (forms["dtype"] == "float32")]
    for axis, column in zip(spline_pareto(forms).axes, ("ratio_to_conv", "kib"), strict=True):
        points = {
            float(line.get_xdata()[0]) for line in axis.lines if line.get_label() in ("low rank", "int8", "exact")
        }  # type: ignore[index, arg-type]
        expected = scored[scored["form"].isin(["low_rank", "int8", "exact"])][column].astype(float)
        assert points == set(expected)
