"""Every key has a line that can be copied."""

from __future__ import annotations

import pytest
import yaml

from botproxy.config.examples import example
from botproxy.config.load import load_options
from botproxy.config.units import Path
from tests.config.test_schema import PAIR, key_paths


@pytest.mark.parametrize(
    "path", [path for path in key_paths() if path[-1] != "bot"], ids=lambda path: ".".join(map(str, path))
)
def test_an_example_is_right_where_it_is_shown(path: Path) -> None:
    document = yaml.safe_load(example(path))
    assert list(document) == [path[-1]]
    for step in reversed(path[:-1]):
        if step == "bot":
            document = {"bot": {"url": "https://a", **document}}
        elif step == "certificates":
            document = {step: [{**PAIR, **document[0]}]}
        elif step == "listen":
            document = {step: [{"address": ":443", **document[0]}]}
        elif step == "plain_listen":
            document = {step: [{"address": ":80", **document[0]}]}
        else:
            document = [document] if isinstance(step, int) else {step: document}
    if path[0] == "plain_listen":
        document["listen"] = [":8443"]
    assert load_options({"certificates": [PAIR], **document})


def test_a_place_that_the_schema_does_not_know_has_the_example_of_the_key_around_it() -> None:
    assert example(("limits", "nothing")) == "limits: {body: 32MiB}"
    assert example(("listen", 0)) == 'listen: [":443"]'
    assert example(("x\x1b",)) == example(())
