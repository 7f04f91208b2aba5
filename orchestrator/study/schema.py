"""The JSON Schema of a study file, made from the same keys that check it; editors use it to complete and to check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.study import fields
from orchestrator.study.fields import Key
from orchestrator.study.reader import ENSEMBLE, NOTE, STUDY_NAME

_TEACHER = "teacher"


def study_schema() -> dict[str, Any]:
    """JSON Schema, draft 7, which is what editors' YAML support understands."""
    schemas = _make_schemas(fields.EXPERIMENT_KEYS)
    # An axis repeats the schema of its value three times, and that of a method contains every option of all methods.
    definitions = {"method": schemas["method"]}
    schemas["method"] = {"$ref": "#/definitions/method", "description": schemas["method"]["description"]}
    experiment = {name: fields.axis_schema(schema) for name, schema in schemas.items()}
    experiment["teacher"] = {"$ref": f"#/definitions/{_TEACHER}"}
    # A teacher that is distilled is an experiment, and has a teacher of its own.
    distilled = {name: {"$ref": f"#/properties/experiments/items/properties/{name}"} for name in experiment}
    kinds = [fields.TEACHER_KEYS["model"].schema(), _make_object(_make_axes(), ["model"])]
    kinds.append(_make_object(distilled, ["method", "student"]))
    definitions["member"] = {"anyOf": kinds}
    members = {"type": "array", "items": {"$ref": "#/definitions/member"}, "minItems": 2}
    members["description"] = "an ensemble: teachers whose logits are averaged"
    ensemble = _make_object({ENSEMBLE: members}, [ENSEMBLE])
    definitions[_TEACHER] = fields.axis_schema({"anyOf": [{"$ref": "#/definitions/member"}, ensemble]})
    parts = {
        "study": {"type": "string", "pattern": f"^{STUDY_NAME}$", "description": "the study's name"},
        "recipe": _make_object(_make_schemas(fields.RECIPE_KEYS), [], "what every experiment shares"),
        "experiments": {
            "type": "array",
            "minItems": 1,
            "description": "a list where one value is expected is an axis, and axes multiply",
            "items": _make_object(experiment, ["method", "dataset", "student"]),
        },
        "resources": _make_object(_make_schemas(fields.RESOURCE_KEYS), [], "what one trial gets"),
    }
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "kdctl study"}
    # Merge keys (`<<`) need no entry here: editors resolve them before they check.
    study = {**_make_object(parts, ["study", "experiments"]), "patternProperties": {f"^{NOTE}": {}}}
    return {**head, **study, "definitions": definitions}


def schema_text() -> str:
    """The schema as the text of a file."""
    return json.dumps(study_schema(), indent=1, ensure_ascii=False) + "\n"


def _make_schemas(known: Mapping[str, Key]) -> dict[str, Any]:
    return {name: key.schema() for name, key in known.items()}


def _make_axes() -> dict[str, Any]:
    return {name: fields.axis_schema(schema) for name, schema in _make_schemas(fields.TEACHER_MAPPING_KEYS).items()}


def _make_object(properties: Mapping[str, Any], required: list[str], description: str = "") -> dict[str, Any]:
    schema = {"type": "object", "properties": dict(properties), "required": required, "additionalProperties": False}
    return {**schema, "description": description} if description else schema
