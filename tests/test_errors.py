"""The tree of errors: each travels between processes as what it is."""

import inspect
import pickle

import pytest

from raysegment import errors

ALL = [item for _, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, errors.RaysegmentError)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_an_error_comes_out_of_another_process_with_its_type_and_its_words(kind: type[errors.RaysegmentError]) -> None:
    found = pickle.loads(pickle.dumps(kind("disk full in epoch 3")))
    assert type(found) is kind
    assert str(found) == "disk full in epoch 3"
    assert found.exit_code == kind.exit_code


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_tree_in_the_documentation_names_every_error(kind: type[errors.RaysegmentError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")
