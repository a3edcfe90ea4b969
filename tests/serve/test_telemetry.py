"""Metrics: they are in Prometheus' format, agree with the requests that were made, and have few labels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from prometheus_client.parser import text_string_to_metric_families

from hystar_fast.index.engine import Item
from tests.support.served import COUNT, drawing, encoded


def samples(running):
    text = running.client.get("metrics").text
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counts_equal_the_requests(start):
    running = start()
    queries = [{"image": encoded(drawing(n))} for n in range(20)] + [{"text": "a secret moon"}] * 10
    queries += [{"text": "moon", "k": 0}] * 5 + [{"image": b"none"}] * 3
    with ThreadPoolExecutor(8) as pool:
        codes = [answer.status_code for answer in pool.map(lambda query: running.search(**query), queries)]
    assert sorted(set(codes)) == [200, 400, 422]
    for key in ("000.png", "001.png", "002.png"):
        running.client.get(f"v1/items/{Item(key).key}")
    for path in ("nothing", "v1/secret", "v1/secret/moon"):
        running.client.get(path)
    found = samples(running)
    route = ("route", "/v1/search")
    for code in (200, 400, 422):
        assert found["hystar_requests_total", ("code", str(code)), route] == codes.count(code)
    assert found["hystar_request_seconds_count", route] == len(queries)
    assert found["hystar_requests_total", ("code", "200"), ("route", "/v1/items/{key}")] == 3
    assert found["hystar_requests_total", ("code", "404"), ("route", "other")] == 3
    for step in ("decode", "queue", "encode", "search"):
        assert found["hystar_step_seconds_count", ("step", step)] == 30
    assert found["hystar_batch_size_sum",] == 30 + 1  # and one to warm up
    assert found["hystar_batch_size_count",] <= 31
    assert found["hystar_index_items",] == COUNT
    assert found["hystar_queue_depth",] == 0 and found["hystar_engine_up",] == 1
    stamp = running.engine.stamps()["adapted"].sha256
    assert found["hystar_index_stamp", ("stamp", stamp), ("view", "adapted")] == 1
    assert found["hystar_process_resident_memory_bytes",] > 1e7


def test_labels_are_bounded(start):
    running = start()
    for number in range(30):
        running.client.get(f"v1/items/{number:016x}")
        running.client.request("PROPFIND", f"v1/secret{number}")
        running.client.delete(f"v1/styles/secret{number}")
    text = running.client.get("metrics").text
    assert "secret" not in text and "PROPFIND" not in text
    assert len({name for name in samples(running) if name[0] == "hystar_requests_total"}) < 10
