"""The Date that we add."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

from botproxy.http.dates import http_date


def test_the_date_is_now_in_the_form_of_http() -> None:
    text = http_date().decode("ascii")
    assert text.endswith(" GMT")
    assert abs(parsedate_to_datetime(text).timestamp() - time.time()) < 5
