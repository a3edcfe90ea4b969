"""The OpenAPI description: it is valid, and every route and every error in it happens."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from fastapi.openapi.models import OpenAPI

from hystar_fast.index.engine import Item
from hystar_fast.serve.problems import CODES
from tests.support.served import drawing, encoded, form

PICTURE = encoded(drawing(0))


@pytest.fixture(scope="module")
def document(server):
    return server.client.get("openapi.json").json()


def references(node):
    if isinstance(node, dict):
        yield from (value for name, value in node.items() if name == "$ref")
        node = list(node.values())
    if isinstance(node, list):
        for entry in node:
            yield from references(entry)


def test_it_is_valid(document):
    OpenAPI.model_validate(document)
    assert document["openapi"].startswith("3.1")
    for reference in references(document):
        place = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]
        assert place


def test_it_describes_every_route_of_the_api(server, document):
    app = server.server.app
    routes = {
        (route.path, method.lower())
        for route in app.routes
        if route.path.startswith("/v1/")
        for method in route.methods
    }
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert described == routes and len(routes) >= 10
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            assert route["summary"] and route["description"], (method, path)
            assert "application/problem+json" in route["responses"]["default"]["content"]
            names = [entry["name"] for entry in route.get("parameters", [])]
            assert names == re.findall(r"{(\w+)}", path)


def test_every_described_field_is_accepted_and_no_other(server, document):
    schema = document["paths"]["/v1/search"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    fields = {"image": PICTURE, "text": "moon", "style": PICTURE, "view": "frozen", "combine": "softmax"}
    fields |= {"k": 3, "where": "parity=1", "compare": True, "view": "adapted"}
    named = {*fields, "modality"}  # which needs a model with means of styles: test_http_modality.py
    assert set(schema["properties"]) == named and not schema["additionalProperties"]
    assert server.search(**fields).status_code == 200


def check(value, schema, document):
    """Check a JSON value against the parts of JSON schema that the description uses."""
    if "$ref" in schema:
        check(value, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    elif "anyOf" in schema:
        faults = []
        for choice in schema["anyOf"]:
            try:
                return check(value, choice, document)
            except AssertionError as fault:
                faults.append(fault)
        raise AssertionError(faults)
    elif schema.get("type") == "object":
        assert isinstance(value, dict), (value, schema)
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        assert set(schema.get("required", ())) <= set(value), (value, schema)
        for name, entry in value.items():
            if name in properties:
                check(entry, properties[name], document)
            elif isinstance(others, dict):
                check(entry, others, document)
            else:
                assert "properties" not in schema, f"{name} is not described in {schema['title']}"
    elif schema.get("type") == "array":
        assert isinstance(value, list)
        for entry in value:
            check(entry, schema["items"], document)
    elif "type" in schema:
        kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
        assert isinstance(value, kinds[schema["type"]]), (value, schema)
        assert value in schema.get("enum", [value])
    return None


def test_every_answer_is_as_described(start):
    running = start(allow_writes=True)
    client, key = running.client, Item("003.png").key
    document = client.get("openapi.json").json()
    moon = {"text": "moon"}
    calls = {
        ("/v1/search", "post"): [
            client.post("v1/search", json=moon),
            running.search(image=PICTURE, compare=True),
            client.post("v1/search", json={}),
        ],
        ("/v1/search/batch", "post"): [client.post("v1/search/batch", json={"queries": [moon, {}]})],
        ("/v1/embed", "post"): [client.post("v1/embed", json=moon), client.post("v1/embed", files=form(image=PICTURE))],
        ("/v1/styles/{name}", "put"): [client.put("v1/styles/a", files=form(image=PICTURE))],
        ("/v1/styles/{name}", "delete"): [client.delete("v1/styles/a")],
        ("/v1/index", "get"): [client.get("v1/index")],
        ("/v1/items", "post"): [client.post("v1/items", files=form(image=encoded(drawing(77)), caption="new"))],
        ("/v1/items/{key}", "get"): [client.get(f"v1/items/{key}"), client.get("v1/items/x")],
        ("/v1/items/{key}/thumbnail", "get"): [client.get(f"v1/items/{key}/thumbnail")],
        ("/v1/items/{key}/picture", "get"): [client.get(f"v1/items/{key}/picture")],
        ("/v1/items/{key}", "delete"): [client.delete(f"v1/items/{key}")],
    }
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert set(calls) == described
    for (path, method), responses in calls.items():
        assert responses[0].is_success, (path, method, responses[0].text)
        for response in responses:
            check_response(response, document["paths"][path][method]["responses"], document)


def check_response(response: httpx.Response, responses, document):
    entry = responses.get(str(response.status_code), responses["default"])
    if response.status_code == 204:
        assert response.content == b""
        return
    (kind,) = entry["content"]
    assert re.fullmatch(kind.replace("*", ".*").replace("+", r"\+"), response.headers["content-type"])
    if kind.endswith("json"):
        check(response.json(), entry["content"][kind]["schema"], document)


def test_every_code_is_in_the_description_and_in_a_test(document):
    assert all(f"{code} ({status})" in document["info"]["description"] for code, status in CODES.items())
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [code for code in CODES if f'"{code}"' not in text] == []
