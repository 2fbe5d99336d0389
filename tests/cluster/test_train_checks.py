"""What `train` refuses before Ray starts."""

import pytest

from raysegment.cluster.train import check_precision
from raysegment.errors import UsageError
from raysegment.options import TrainOptions
from raysegment.pipeline.training_set import check_channels


def make_options(**choices: object) -> TrainOptions:
    return TrainOptions(source="scans", out="run", **choices)


def test_channels_that_the_scans_do_not_have_are_refused_with_both_numbers() -> None:
    check_channels(make_options(channels=(2, 0)), 3)
    check_channels(make_options(), 3)
    with pytest.raises(UsageError, match="asks for channel 3; most scans in scans have 3"):
        check_channels(make_options(channels=(0, 3)), 3)


def test_a_run_goes_on_in_the_precision_it_began_in() -> None:
    check_precision(make_options(precision="auto"), {"precision": "bfloat16"})
    check_precision(make_options(precision="float16"), {})
    with pytest.raises(UsageError, match="holds a run in bfloat16, --precision is float32"):
        check_precision(make_options(precision="float32"), {"precision": "bfloat16"})
