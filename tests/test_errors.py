"An error says in one line what to put right, and carries its name and what was found there."
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from refused import refused
from tsynd.core import check_known, check_range, InputError


def parts(e): return type(e), str(e), e.field, e.found

def test_an_error_is_its_sentence():
    e = InputError('radius is -1', 'radius', -1)
    assert parts(e) == (InputError, 'radius is -1', 'radius', -1) and isinstance(e, ValueError)
    assert InputError('a/b.npz is empty', Path('a/b.npz')).field == str(Path('a/b.npz'))

def test_an_error_can_be_made_again_from_its_message():
    "As torch's loaders do with what a worker raises"
    assert parts(InputError('something is wrong')) == (InputError, 'something is wrong', '', None)

@pytest.mark.parametrize('found', [None, -1, 'three', (2, 3), [1, 'a']], ids=str)
def test_an_error_survives_pickling(found):
    e = InputError('radius is wrong', 'radius', found)
    again = pickle.loads(pickle.dumps(e))
    e.args = ['Exception in a callback: radius is wrong']            # as fastai does
    assert parts(again) == parts(pickle.loads(pickle.dumps(e))) == parts(e)

def test_an_error_comes_back_from_another_process():
    with ProcessPoolExecutor(1, get_context('spawn')) as pool, refused('radius', 'more than 0', found=-1):
        pool.submit(check_range, 'radius', -1, lo=0, open_lo=True).result()

def test_the_shared_checks_say_what_they_found():
    with refused('colour', 'red, blue', found='rad'): check_known('colour', ['red','rad'], ['red','blue'])
    with refused('colour', 'flag: ', found='rad'): check_known('flag: colour', ['rad'], ['red'], 'colour')

@pytest.mark.parametrize('message, field, found', [
    ('steps is 0', 'radius', 0), ('radius is 1', 'radius', 1), ('steps is 0', 'steps', 0),
    ('radius\nis 0', 'radius', 0), ('radius is wrong', 'radius', 0)])
def test_what_the_tests_ask_for_can_be_missing(message, field, found):
    "A field that the message lacks, another value, another field, two lines, no value"
    error = InputError(message, field, found)
    with pytest.raises(AssertionError), refused('radius', '0', found=0): raise error
