import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.record import LEADS, DataError, RecordError, lead_name, one_of
from trainables.settings import STANDARD_LEADS


@given(st.sampled_from(LEADS), st.data())
def test_a_lead_is_known_in_any_case_and_with_blanks_around_it(lead, data):
    spelling = "".join(data.draw(st.sampled_from([letter.upper(), letter.lower()])) for letter in lead)
    assert lead_name(f" {spelling}\n") == lead


@pytest.mark.parametrize("name", ["", "V7", "MLII", "aVX", "lead I"])
def test_an_unknown_lead_is_refused_with_the_ones_that_exist(name):
    with pytest.raises(DataError, match=r"must be one of I, II, III, aVR"):
        lead_name(name)


def test_what_was_nearly_meant_is_named():
    assert one_of(["superdiagnostic", "rhythm"], "superdiagnosic").endswith("did you mean superdiagnostic?")
    assert one_of(["superdiagnostic", "rhythm"], "zzz") == "must be one of superdiagnostic, rhythm"


def test_a_bad_record_is_a_data_error_that_can_be_told_apart():
    assert issubclass(RecordError, DataError)
    assert issubclass(DataError, ValueError)


def test_settings_and_data_name_the_same_twelve_leads():
    assert list(LEADS) == STANDARD_LEADS
