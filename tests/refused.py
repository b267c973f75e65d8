"""What the user can put right is told by its name and by what was found there, in one line."""
from contextlib import contextmanager
from pathlib import Path

import pytest

from tsynd.core import InputError


@contextmanager
def refused(field,    # what the error is about, a name or a path
            *values,  # which the message must hold, such as those that are expected
            found=... # what was found there, if that is to be compared
           ):
    "The block raises an `InputError` about this field"
    with pytest.raises(InputError) as caught: yield caught
    error, message = caught.value, str(caught.value)
    assert error.field == str(field), message
    assert field_is_named(error) and len(message.splitlines()) == 1, message
    assert [v for v in values if v not in message] == [], message
    if found is not ...: assert error.found == found or str(error.found) == str(found), message

def field_is_named(error): return error.field in str(error) or Path(error.field).name in str(error)
