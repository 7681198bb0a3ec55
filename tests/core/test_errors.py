"""The exception tree, the sentence every input error makes, and the nearest name."""

import pickle

import pytest

import excise.errors
from excise.errors import (
    DataError,
    DivergedError,
    ExciseError,
    InputError,
    ModelError,
    SpecError,
    TriggerError,
    UnsafeFileError,
    nearest,
)

pytestmark = pytest.mark.fast

INPUT_ERRORS = [InputError, SpecError, DataError, TriggerError, ModelError, UnsafeFileError]


def test_the_tree_is_as_drawn():
    assert ExciseError.__bases__ == (Exception,)
    assert InputError.__bases__ == (ExciseError, ValueError)
    assert DivergedError.__bases__ == (ExciseError,)
    for kind in (SpecError, DataError, TriggerError, ModelError):
        assert kind.__bases__ == (InputError,)
        assert f"{kind.__name__} " in excise.errors.__doc__
    assert UnsafeFileError.__bases__ == (ModelError,)


def test_nothing_else_is_exported():
    assert set(excise.errors.__all__) == {
        "ExciseError", "InputError", "SpecError", "DataError", "TriggerError", "ModelError",
        "UnsafeFileError", "DivergedError", "nearest",
    }  # fmt: skip


@pytest.mark.parametrize("kind", INPUT_ERRORS)
def test_it_says_expected_got_and_remedy(kind):
    error = kind("3 apples", got="2 pears", remedy="Buy apples.")
    assert str(error) == "expected 3 apples, got 2 pears. Buy apples."
    assert (error.expected, error.got, error.remedy) == ("3 apples", "2 pears", "Buy apples.")


@pytest.mark.parametrize("kind", INPUT_ERRORS)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_it_crosses_processes(kind, protocol):
    error = kind("a", got="b", remedy="C.")
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert (copy.expected, copy.got, copy.remedy) == ("a", "b", "C.")


def test_divergence_crosses_processes():
    copy = pickle.loads(pickle.dumps(DivergedError("the loss is nan")))
    assert type(copy) is DivergedError
    assert str(copy) == "the loss is nan"


def test_got_and_remedy_are_asked_for_by_name():
    with pytest.raises(TypeError):
        SpecError("a", "b", "c")
    with pytest.raises(TypeError):
        SpecError("a", got="b")


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("badnet", ["blended", "badnets"], "Did you mean 'badnets'?"),
        ("xyz", ["b", "a"], "Known: a, b."),
        ("xyz", [], "None is known yet."),
        ("", ["a"], "Known: a."),
    ],
)
def test_the_nearest_name(name, known, said):
    assert nearest(name, known) == said
