"""The JSON Schema of the configuration, for editors.

Made from `schema.Config` in the form people write it, short forms included;
descriptions are the docstrings of the keys. It is what an editor can check while
somebody types: contradictions between keys are left to `load`. `make schema`
writes it to the file that is shipped beside this module.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from botproxy.config.schema import Config

FILE = Path(__file__).with_name("schema.json")


def schema_json() -> str:
    """The schema as text, the same on every run."""
    schema = Config.model_json_schema(mode="validation", schema_generator=_Untitled)
    document = {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": "botproxy"}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


class _Untitled(GenerateJsonSchema):
    """No titles of fields, which would repeat the key; defaults as people write them; no other keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        serialization: Any = schema["schema"].get("serialization", {})
        if "default" in made and "function" in serialization:
            made["default"] = serialization["function"](schema["default"])
        return made

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        made = super().dict_schema(schema)
        return {**made, "additionalProperties": False} if "patternProperties" in made else made


if __name__ == "__main__":
    FILE.write_text(schema_json(), encoding="utf-8")
