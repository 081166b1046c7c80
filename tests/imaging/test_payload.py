"""What the readers of files may say of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from medserve.imaging.codecs.payload import silence_libraries

_NAMES = ("PIL", "pydicom", "nibabel")


@pytest.fixture
def _restored() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _NAMES]
    before = [(each.propagate, each.handlers, each.disabled) for each in loggers]
    yield
    for library, state in zip(loggers, before, strict=True):
        library.propagate, library.handlers, library.disabled = state


@pytest.mark.usefixtures("_restored")
def test_no_line_of_a_library_gets_out_whatever_level_it_sets_later(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    silence_libraries()
    for name in (*_NAMES, "PIL.PngImagePlugin", "pydicom.charset"):
        library = logging.getLogger(name)
        before = library.level
        library.setLevel(logging.DEBUG)  # as pydicom does when it is imported
        library.error("PatientName DOE^JANE")
        library.setLevel(before)
    assert "DOE" not in caplog.text
    assert "DOE" not in "".join(capfd.readouterr())
