"""The server answers as the guide does, within its limits, and every error is one JSON object."""

import asyncio
import dataclasses
import io
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

import metaguide
from metaguide.data.catalogue import Product, Question, Review
from metaguide.data.histories import History
from metaguide.guide import AdaptedGuide
from metaguide.web import Limits, ServeError, create_app, serve
from metaguide.web.app import PATHS
from metaguide.web.errors import Refusal
from metaguide.web.metrics import Metrics
from metaguide.web.server import is_loopback
from metaguide.web.service import Service
from metaguide.web.teaching import held_back
from tests.web.conftest import LIMITS

FUZZED = int(os.environ.get("METAGUIDE_FUZZ", "400"))
"""Malformed bodies for each endpoint."""

REVIEWS = [
    {"text": text, "sentiment": label}
    for label, texts in {
        "positive": ("bad 1", "bad 2", "bad 3", "bad 7"),
        "negative": ("good 1", "good 2", "good 3", "good 7"),
    }.items()
    for text in texts
]
"""The opposite of what the guide adapted to."""


def client_of(adapted, **arguments):
    arguments = {"limits": LIMITS, "hosts": ("testserver",), **arguments}
    return TestClient(create_app(adapted, **arguments), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(adapted):
    with client_of(adapted) as client:
        yield client


def refused(response, status, code, *said):
    """Check that a response is an error of ours, and return it."""
    found = response.json()
    assert response.status_code == status, found
    assert set(found) <= {"error", "hint", "code", "field"} and {"error", "hint"} <= set(found)
    assert found["code"] == code and "Traceback" not in response.text
    for part in said:
        assert part in json.dumps(found), found
    assert "default-src 'none'" in response.headers["content-security-policy"]
    return found


def test_answers_are_those_of_the_guide(client, adapted):
    """Faults: another task answers; a field of a product or of an answer is lost; a product of the
    catalogue is not read whole; rankings are cut at the wrong end."""
    texts = {"title": "it calls", "description": "walks", "attributes": {"a": "tells"}}
    found = client.post("/v1/classify", json=[{"id": "phone0"}, texts]).json()
    wanted = adapted.predict([adapted.domain.products[0], Product("", **texts)])
    for one, answer in zip(found, wanted, strict=True):
        assert one["category"] == answer.category
        assert one["probabilities"] == pytest.approx(answer.probabilities, abs=1e-5)
        assert one["probability"] == one["probabilities"][one["category"]]
    found = client.post("/v1/sentiment", json=[{"text": "good 1"}, {"text": "bad 店"}]).json()
    wanted = adapted.predict([Review("", "good 1"), Review("", "bad 店")])
    assert [one["sentiment"] for one in found] == [one.sentiment for one in wanted]
    assert [one["positive"] for one in found] == pytest.approx([o.positive for o in wanted], 1e-4)
    asked = [{"question": "who?", "text": one} for one in ("it is Ann I see", "", "😀 " * 70)]
    found = client.post("/v1/answer", json=asked).json()
    wanted = adapted.predict([Question("", **one) for one in asked])
    assert [one["text"] for one in found] == [one.text for one in wanted]
    assert [one["span"] and tuple(one["span"]) for one in found] == [one.span for one in wanted]
    described = client.post("/v1/answer", json=[{"question": "who?", "product": "a/b ?#店"}]).json()
    (wanted,) = adapted.predict([Question("", "who?", "<img src=x onerror=alert(1)>")])
    assert described[0]["text"] == wanted.text
    bodies = [{"user": "u", "products": ["phone0", "shoe1"]}, {"products": []}]
    found = client.post("/v1/recommend?top=3", json=bodies).json()
    wanted = adapted.predict([History("u", ("phone0", "shoe1")), History("user", ())], top=3)
    assert [[p["id"] for p in one["products"]] for one in found] == [
        list(one.products) for one in wanted
    ]
    assert [one["by"] for one in found] == ["history", "no history"]
    assert len(client.post("/v1/recommend", json=bodies[:1]).json()[0]["products"]) == LIMITS.top


def test_a_text_that_is_longer_than_the_guide_reads_is_told(client, adapted, monkeypatch):
    """Faults: the end of a long text is not read, by one of its readers, and nothing says so; a
    short one is said to be cut."""
    short, long = "good 1", "good 1 " * 40
    bodies = {"sentiment": [{"text": short}, {"text": long}]}
    bodies["classify"] = [{"title": one} for one in (short, long)]
    for path, body in bodies.items():
        found = client.post(f"/v1/{path}", json=body).json()
        assert [one["read_to_the_end"] for one in found] == [True, False]
    reader = adapted.guide.reading.reader
    without = dataclasses.replace(reader, buckets=0)
    length = adapted.guide.reading.lengths.text
    assert without.reads_to_the_end([short, long], length).tolist() == [True, False]
    exact = next(n for n in range(1, 99) if not without.reads_to_the_end(["a " * n], length)[0])
    assert (without.tokenizer.encode(["a " * exact], length).words >= 0).sum() < exact
    words = dataclasses.replace(reader, tokenizer=None)
    many = " ".join(map(str, range(129)))
    assert words.reads_to_the_end([long, many], length).tolist() == [True, False]
    vectors = dataclasses.replace(words, ends=lambda texts: np.array([len(t) < 9 for t in texts]))
    assert vectors.reads_to_the_end([short, long], length).tolist() == [True, False]


def test_the_guide_the_shelf_and_pictures(client, adapted):
    """Faults: a task or category is missing; a search misses a word, ignores the limit or prefers
    a description; an id with a slash has no picture; a picture changes its pixels."""
    about = client.get("/v1/guide").json()
    assert about["domain"] == "garden_shop" and about["products"] == 9 and not about["taught"]
    assert about["categories"] == ["novel", "phone", "shoe"] and not about["can_save"]
    assert {task: (one["path"], one["available"]) for task, one in about["tasks"].items()} == {
        task: (path, True) for task, path in PATHS.items()
    }
    assert about["tasks"]["sentiment"]["method"] == "ridge"
    assert about["tasks"]["classification"]["examples"] == 3

    def ids(**query):
        return [one["id"] for one in client.get("/v1/products", params=query).json()]

    assert ids(query="ＣＡＬＬＳ 1") == ["phone1"] and ids(query="no such") == []
    assert ids(query="店") == ["a/b ?#店"] and len(ids()) == 9 and len(ids(limit=2)) == 2
    assert ids(query="novel") == ["novel0", "a/b ?#店", "novel2"]
    refused(client.get("/v1/products?limit=0"), 422, "invalid", "limit")
    refused(client.get("/v1/products?limit=1000"), 422, "invalid", "limit")
    response = client.get("/v1/products/phone1/picture")
    assert response.headers["content-type"] == "image/png"
    image = np.asarray(Image.open(io.BytesIO(response.content)))
    np.testing.assert_array_equal(image, adapted.domain.products[1].image)
    refused(client.get("/v1/products/a%2Fb%20%3F%23%E5%BA%97/picture"), 404, "no_picture")
    refused(client.get("/v1/products/none/picture"), 404, "no_picture")


def test_a_picture_of_an_id_with_a_slash(adapted):
    """Fault: the slash of an id ends the path."""
    image = adapted.domain.products[0].image
    product = Product("../a/b?", "it calls", image=image)
    domain = dataclasses.replace(adapted.domain, products=(product,))
    app = create_app(dataclasses.replace(adapted, domain=domain), hosts=("testserver",))
    response = TestClient(app).get("/v1/products/..%2Fa%2Fb%3F/picture")
    assert response.status_code == 200 and response.headers["content-type"] == "image/png"


def test_the_page_needs_no_other_host_and_its_files_are_served(client):
    """Faults: a file is missing; FastAPI's page, which loads scripts from elsewhere, is served; a
    cached file is sent again."""
    for path in ("/", "/docs", "/style.css", "/app.js", "/strings.js", "/docs.js", "/icon.svg"):
        response = client.get(path)
        assert response.status_code == 200 and len(response.content) > 200, path
        address = response.text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in address and "https://" not in address, path
        assert "innerHTML" not in address and " onclick=" not in address, path
        assert "'unsafe" not in response.headers["content-security-policy"]
        again = client.get(path, headers={"if-none-match": response.headers["etag"]})
        assert again.status_code == 304
    refused(client.get("/redoc"), 404, "not_found")
    paths = client.get("/openapi.json").json()["paths"]
    assert {*PATHS.values(), "/v1/teach", "/v1/guide", "/metrics", "/health"} <= set(paths)
    assert "/" not in paths


@pytest.mark.slow
def test_concurrent_requests_share_calls(adapted, monkeypatch):
    """Faults: a call of the guide for each request; clients get one another's answers; batches are
    not counted."""
    calls, predict = [], AdaptedGuide.predict
    limits = LIMITS._replace(batch=15, wait=0.05)
    names = [one.id for one in adapted.domain.products]
    wanted = {
        id: predict(adapted, [p]) for id, p in zip(names, adapted.domain.products, strict=True)
    }
    with client_of(adapted, limits=limits) as client:

        def counted(self, batch, top=None):
            calls.append(threading.current_thread().name)
            return predict(self, batch, top)

        monkeypatch.setattr(AdaptedGuide, "predict", counted)
        with ThreadPoolExecutor(32) as pool:
            bodies = [[{"id": names[n % 9]}] for n in range(32)]
            found = list(pool.map(lambda body: client.post("/v1/classify", json=body), bodies))
        text = client.get("/metrics").text
    for body, response in zip(bodies, found, strict=True):
        (one,) = response.json()
        chances = wanted[body[0]["id"]][0].probabilities
        assert one["probabilities"] == pytest.approx(chances, abs=1e-5)
    assert 2 <= len(calls) <= 16
    assert all(name.startswith("answer") for name in calls)
    assert 'metaguide_batch_examples_sum{task="classification"} 32' in text
    assert f'metaguide_batch_examples_count{{task="classification"}} {len(calls)}' in text
    assert 'requests_total{method="POST",path="/v1/classify",status="200"} 32' in text


def test_limits_name_what_is_too_much(client):
    """Faults: a limit is not held, or its error does not say which field broke it."""
    path = "/v1/sentiment"
    refused(client.post(path, json=[{"text": "a"}] * 9), 422, "too_many", "9", "1 to 8")
    refused(client.post(path, json=[]), 422, "empty", "body")
    said = [{"text": "a"}, {"text": "a" * 301}]
    refused(client.post(path, json=said), 422, "too_long", "body[1].text", "300")
    said = [{"title": "a", "attributes": {"b" * 200: "c" * 200}}]
    refused(client.post("/v1/classify", json=said), 422, "too_long", "body[0].attributes")
    refused(client.post(path, json=[{"text": "a" * 30_000}]), 413, "too_large", "20000")

    def pieces():
        for _ in range(30):
            yield b"a" * 1000

    kind = {"Content-Type": "application/json"}
    refused(client.post(path, content=pieces(), headers=kind), 413, "too_large")
    path = "/v1/recommend"
    refused(client.post(path, json=[{"products": ["phone0"] * 6}]), 422, "too_many", "products")
    refused(client.post(f"{path}?top=7", json=[{"products": []}]), 422, "invalid", "top")


def test_products_of_no_catalogue_are_not_read_and_named(client):
    """Faults: one delisted product loses the rankings of all users; it changes a ranking; it is
    left out in silence; a user of such products alone is said to have a history."""
    histories = (["phone0"], ["gone", "phone0", "lost", "gone"], ["gone"], [])
    said = [{"products": list(one)} for one in histories]
    plain, mixed, unknown, new = client.post("/v1/recommend", json=said).json()
    assert [one["unknown"] for one in (plain, mixed, unknown, new)] == [
        [], ["gone", "lost"], ["gone"], []
    ]  # fmt: skip
    assert mixed["products"] == plain["products"] and unknown["products"] == new["products"]
    assert [one["by"] for one in (mixed, unknown)] == ["history", "no history"]


def test_each_error_says_what_to_mend(client):
    """Faults: a body that is no JSON, or of another type, is read; an error has another form."""
    path = "/v1/sentiment"
    refused(client.post(path, content=b'[{"text": "a"}]'), 415, "not_json", "Content-Type")
    form = {"Content-Type": "text/plain; charset=application/json"}
    refused(client.post(path, content=b"[]", headers=form), 415, "not_json")
    refused(client.post("/v1/teach/reset"), 415, "not_json")  # the form of another site
    kind = {"Content-Type": "application/json"}
    refused(client.post(path, content=b'[{"text": }]', headers=kind), 400, "bad_json")
    refused(client.post(path, content=b"[" * 9_000, headers=kind), 400, "bad_json")
    refused(client.post(path, content=b"\xff\xfe", headers=kind), 400, "bad_json")
    refused(client.post(path, content='[{"text": "好"}]'.encode("gb18030"), headers=kind), 400,
            "bad_json", "UTF-8")  # fmt: skip
    for blank in ("", " \n", "\u3000"):
        refused(client.post(path, json=[{"text": blank}]), 422, "empty", "body[0].text")
        said = {"task": "sentiment", "examples": [{"text": blank, "sentiment": "positive"}]}
        refused(client.post("/v1/teach", json=said), 422, "empty", "examples[0].text")
    said = [{"question": " ", "text": "a"}]
    refused(client.post("/v1/answer", json=said), 422, "empty", "body[0].question")
    refused(client.post("/v1/classify", json=[{"title": "\u3000"}]), 422, "empty", "title")
    said = {"task": "sentiment", "examples": [{"text": "a", "sentiment": "差评"}]}
    refused(client.post("/v1/teach", json=said), 422, "invalid", "body.examples[0].sentiment")
    refused(client.post(path, json=[{"text": 3}]), 422, "invalid", "body[0].text")
    refused(client.post(path, json=[{}]), 422, "invalid", "body[0].text")
    refused(client.post(path, json={"text": "a"}), 422, "invalid", "body")
    refused(client.post(path, json=[{"text": "a", "x": 1}]), 422, "invalid", "body[0].x")
    refused(client.post(path, content=b'[{"text": "\\ud800"}]', headers=kind), 422, "invalid")
    refused(client.post(path, content=b'[{"\\ud800": "a"}]', headers=kind), 422, "invalid")
    said = b'[{"text": "a", "\\ud800": "a"}]'
    refused(client.post(path, content=said, headers=kind), 422, "invalid")
    said = b'{"task": "\\ud800", "examples": []}'
    refused(client.post("/v1/teach", content=said, headers=kind), 422, "invalid", "task")
    for one in ({}, {"id": "phone0", "title": "a"}):
        refused(client.post("/v1/classify", json=[one]), 422, "invalid", "body[0]", "not both")
    refused(client.post("/v1/classify", json=[{"id": "gone"}]), 422, "unknown_product", "gone")
    refused(client.get("/v1/none"), 404, "not_found")
    response = client.get(path)
    refused(response, 405, "method")
    assert response.headers["allow"] == "POST"
    asks = {"question": "who?"}
    for one in (asks, {**asks, "text": "a", "product": "phone0"}):
        refused(client.post("/v1/answer", json=[one]), 422, "invalid", "body[0]", "not both")
    for id, code in (("phone0", "invalid"), ("gone", "unknown_product")):
        refused(client.post("/v1/answer", json=[{**asks, "product": id}]), 422, code, "product")
    refused(client.post("/v1/classify", json=[{"description": " "}]), 422, "invalid", "body[0]")
    example = {"text": "good", "sentiment": "positive", "held_back": "yes"}
    said = {"task": "sentiment", "examples": [example]}
    refused(client.post("/v1/teach", json=said), 422, "invalid", "held_back")


def test_a_task_that_is_not_answered_says_why(adapted):
    """Fault: a task that the guide lacks fails in another way than by the guide's own reason."""
    tasks = {name: one for name, one in adapted.adapted.items() if name != "questions"}
    notes = {"questions": ("there are no questions to speak of",)}
    with client_of(dataclasses.replace(adapted, adapted=tasks, notes=notes)) as client:
        body = [{"question": "a", "text": "b"}]
        response = client.post("/v1/answer", json=body)
        refused(response, 409, "task_unavailable", "no questions to speak of")
        about = client.get("/v1/guide").json()["tasks"]["questions"]
        assert not about["available"] and about["notes"] == list(notes["questions"])
        assert client.post("/v1/sentiment", json=[{"text": "good"}]).status_code == 200


def test_a_slow_answer_times_out_and_a_full_queue_refuses(adapted, monkeypatch):
    """Faults: a client waits for ever; waiting requests grow without bound; the server's health
    waits for a prediction; a timed-out request is answered by no error of ours."""
    predict, go_on = AdaptedGuide.predict, threading.Event()
    with client_of(adapted, limits=LIMITS._replace(seconds=0.5, queue=2)) as client:
        assert client.post("/v1/sentiment", json=[{"text": "good"}]).status_code == 200

        def slow(self, batch, top=None):
            go_on.wait(10)
            return predict(self, batch, top)

        monkeypatch.setattr(AdaptedGuide, "predict", slow)
        with ThreadPoolExecutor(8) as pool:
            ask = lambda _: client.post("/v1/sentiment", json=[{"text": "good"}] * 2)  # noqa: E731
            sent = [pool.submit(ask, 0)]
            time.sleep(0.2)
            sent += [pool.submit(ask, n) for n in range(4)]
            begun = time.perf_counter()
            assert client.get("/health").json() == {"status": "ok"}
            assert time.perf_counter() - begun < 0.3
            codes = sorted(one.result().json()["code"] for one in sent)
        assert codes == ["busy"] * 3 + ["timeout"] * 2
        busy = next(one.result() for one in sent if one.result().status_code == 503)
        assert busy.headers["retry-after"] == "1"
        go_on.set()
        assert client.post("/v1/sentiment", json=[{"text": "good"}]).status_code == 200


def test_a_mistake_of_ours_is_told_without_its_traceback(adapted, monkeypatch):
    """Faults: a client sees a traceback or a path; a prediction that the guide refuses is a 500."""
    with client_of(adapted) as client:

        def broken(self, batch, top=None):
            raise error

        monkeypatch.setattr(AdaptedGuide, "predict", broken)
        error = RuntimeError("/secret/path")
        response = client.post("/v1/sentiment", json=[{"text": "good"}])
        refused(response, 500, "internal")
        assert "secret" not in response.text
        error = ValueError("the guide's logits are not finite")
        response = client.post("/v1/sentiment", json=[{"text": "good"}])
        refused(response, 422, "invalid", "not finite")
        assert 'errors_total{path="/v1/sentiment"} 2' in client.get("/metrics").text


def test_a_token_and_the_host_are_asked_for(adapted):
    """Faults: a path below /v1 is open, a prefix of a token or another scheme passes, or the page
    itself needs a token; a rebound name reaches the guide; HEAD is refused."""
    app = create_app(adapted, token="secret-1")
    client = TestClient(app, base_url="http://127.0.0.1:80", raise_server_exceptions=False)
    for path in ("/", "/docs", "/health", "/openapi.json", "/app.js"):
        assert client.get(path).status_code == 200, path
    for path in ("/", "/health", "/app.js"):
        assert client.head(path).status_code == 200, path
    paths = ("/v1/guide", "/v1/products", "/v1/products/phone0/picture", "/metrics", "/v1/none")
    for path in paths:
        response = client.get(path)
        refused(response, 401, "unauthorized", "Bearer")
        assert response.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer secret-", "Bearer secret-12", "secret-1", "Basic secret-1", "é"):
            headers = {"Authorization": wrong.encode()}
            refused(client.get(path, headers=headers), 401, "unauthorized")
        for scheme in ("Bearer", "bearer"):
            given = client.get(path, headers={"Authorization": f"{scheme} secret-1"})
            assert given.status_code in (200, 404)
    schema = client.get("/openapi.json").json()
    assert schema["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for name in ("guide", "sentiment", "teach/reset"):
        (described,) = schema["paths"][f"/v1/{name}"].values()
        assert described["security"] == [{"HTTPBearer": []}]
    assert "requestBody" in schema["paths"]["/v1/teach/reset"]["post"]
    refused(client.post("/v1/sentiment", json=[]), 401, "unauthorized")
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost@evil", "", "[::2]:80"):
        refused(client.get("/", headers={"Host": host}), 400, "host", "127.0.0.1")
    for host in ("localhost:8080", "LOCALHOST", "[::1]:8080", "[::1]", "127.0.0.1"):
        assert client.get("/health", headers={"Host": host}).status_code == 200, host
    open_app = create_app(adapted, hosts=("*",))
    assert TestClient(open_app, base_url="http://any.example").get("/health").status_code == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@st.composite
def bodies(draw):
    """A body: a right one with a part changed, another value, or other bytes."""
    names = st.sampled_from(
        ["id", "title", "text", "question", "products", "user", "attributes", "task", "examples"]
        + ["seed", "held_back", "answer", "category", "sentiment", "description"]
    )
    values = json_values | st.sampled_from(
        ["classification", "sentiment", "questions", "phone0", "gone", "a", "\x00", "\ud800", " "]
        + [[0, 1], [1, 0], [-1, 2], [0, 10**30], True, "positive"]
    )
    one = st.dictionaries(names, values | st.lists(values, max_size=3), max_size=5)
    value = draw(one | st.lists(one | values, max_size=4) | json_values)
    if isinstance(value, dict) and draw(st.booleans()):
        value["examples"] = draw(st.lists(one, max_size=4))
    text = json.dumps(value).encode()
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=4)) + text[at + draw(st.integers(0, 3)) :]
    return text


@pytest.mark.slow
def test_no_body_makes_the_server_fail(client):
    """Fault: a body, however malformed, is answered by a 500, by no JSON, or not at all."""
    statuses = []

    @settings(max_examples=FUZZED, deadline=None, suppress_health_check=list(HealthCheck))
    @given(bodies())
    def fuzz(body):
        for path in (*PATHS.values(), "/v1/teach"):
            headers = {"Content-Type": "application/json"}
            response = client.post(path, content=body, headers=headers)
            found = response.json()
            assert response.status_code < 500, (path, body, found)
            if response.status_code >= 400:
                assert {"error", "hint", "code"} <= set(found), (path, body, found)
            statuses.append(response.status_code)

    fuzz()
    assert {400, 422} <= set(statuses)
    client.post("/v1/teach/reset", json={})


def test_half_is_held_back_and_every_label_is_taught():
    """Faults: the draw depends on nothing but the order; a label is only measured; a mark is
    ignored; what the guide knows measures it."""
    labels, free = ["a"] * 6 + ["b"] * 2, [None] * 8
    drawn = [held_back(labels, free, [False] * 8, seed) for seed in range(20)]
    assert all(sum(one) == 4 and sum(one[6:]) <= 1 and sum(one[:6]) <= 5 for one in drawn)
    assert len({tuple(one) for one in drawn}) > 4
    assert drawn[3] == held_back(labels, free, [False] * 8, 3)
    assert held_back(["a", "b"], [None] * 2, [False] * 2, 0) == [False, False]
    marks = [True, False, None, None]
    for seed in range(9):
        found = held_back(["a"] * 4, marks, [False] * 4, seed)
        assert found[:2] == [True, False] and sum(found[2:]) == 1
    known = [True] * 4 + [False] * 4
    assert not any(held_back(["a"] * 8, free, known, 0)[:4])


@pytest.mark.slow
def test_a_lesson_changes_answers_and_reset_restores_them(adapted, tmp_path):
    """Faults: a lesson teaches nothing, or what it measures on; accuracy is that of the wrong guide
    or examples; reset keeps a lesson; a guide is saved where a client says, or not at all."""
    folder = tmp_path / "taught.guide"
    with client_of(adapted, save_to=folder) as client:
        texts = [{"text": one["text"]} for one in REVIEWS]
        before = client.post("/v1/sentiment", json=texts).json()
        found = client.post("/v1/teach", json={"task": "sentiment", "examples": REVIEWS}).json()
        after = client.post("/v1/sentiment", json=texts).json()
        assert before != after and (found["taught"], found["held_back"]) == (4, 4)
        for when, answers in (("before", before), ("after", after)):
            right = []
            for one, outcome, answer in zip(REVIEWS, found["examples"], answers, strict=True):
                is_right = answer["sentiment"] == one["sentiment"]
                assert outcome[when] == (is_right if outcome["held_back"] else None)
                right += [is_right] * outcome["held_back"]
            assert found[when] == sum(right) / 4
        assert client.get("/v1/guide").json()["taught"] == 4
        expected = adapted.adapt(
            [
                Review(str(n), one["text"], sentiment=one["sentiment"])
                for n, (one, outcome) in enumerate(zip(REVIEWS, found["examples"], strict=True))
                if not outcome["held_back"]
            ]
        ).predict([Review("", one["text"]) for one in REVIEWS])
        assert [one["positive"] for one in after] == pytest.approx(
            [one.positive for one in expected], abs=1e-4
        )
        refused(client.post("/v1/teach/save", json={"path": "/tmp/x"}), 422, "invalid", "path")
        assert client.post("/v1/teach/save", json={}).status_code == 200
        client.post("/v1/teach/reset", json={})
        assert client.post("/v1/sentiment", json=texts).json() == before
        assert client.get("/v1/guide").json()["taught"] == 0
    kept = metaguide.load(folder).predict([Review("", one["text"]) for one in REVIEWS])
    assert [one.sentiment for one in kept] == [one["sentiment"] for one in after]


@pytest.mark.slow
def test_what_is_taught(client, adapted):
    """Faults: a category of its own is not learned; a product of the catalogue is another one; a
    question's span is off; a repeated example is taught and measured on; a seed changes nothing."""
    examples = [
        {"title": f"it floats {n}", "category": "boat", "held_back": n == 0} for n in range(3)
    ]
    examples.append({"id": "phone0", "category": "boat", "held_back": False})
    said = {"task": "classification", "examples": examples}
    found = client.post("/v1/teach", json=said).json()
    assert (found["taught"], found["held_back"]) == (3, 1) and found["before"] == 0.0
    about = client.get("/v1/guide").json()
    assert about["categories"] == ["boat", "novel", "phone", "shoe"]
    (answer,) = client.post("/v1/classify", json=[{"title": "it floats 0"}]).json()
    assert set(answer["probabilities"]) == {"boat", "novel", "phone", "shoe"}
    client.post("/v1/teach/reset", json={})
    text = "😀 it is Ann I see"
    asked = [{"question": f"who {n}?", "text": text, "answer": [8, 11]} for n in range(4)]
    asked.append({"question": "when?", "text": text, "answer": None})
    found = client.post("/v1/teach", json={"task": "questions", "examples": asked}).json()
    assert found["taught"] + found["held_back"] == 5
    assert any("zero-shot, which learns nothing" in note for note in found["notes"])
    client.post("/v1/teach/reset", json={})
    twice = [{"text": "twice", "sentiment": label} for label in ("positive", "negative")]
    said = {"task": "sentiment", "examples": [*twice, *REVIEWS], "seed": 1}
    found = client.post("/v1/teach", json=said).json()
    assert found["taught"] + found["held_back"] == 9
    assert found["examples"][0] == found["examples"][1]
    said["examples"] = [{**one, "held_back": n < 2} for n, one in enumerate(said["examples"])]
    (answer,) = client.post("/v1/sentiment", json=[{"text": "twice"}]).json()
    outcome = client.post("/v1/teach", json={**said, "seed": 0}).json()["examples"][1]
    assert outcome["before"] == (answer["sentiment"] == "negative")  # the last label counts
    client.post("/v1/teach/reset", json={})
    said = {"task": "sentiment", "examples": [*twice, *REVIEWS], "seed": 1}
    found = client.post("/v1/teach", json=said).json()
    again = client.post("/v1/teach", json=said).json()
    assert any("had adapted to" in note for note in again["notes"]) is False
    kept = {n for n, one in enumerate(found["examples"]) if not one["held_back"]}
    assert kept <= {n for n, one in enumerate(again["examples"]) if not one["held_back"]}
    client.post("/v1/teach/reset", json={})


def test_a_lesson_that_cannot_be_given_says_why(client, adapted, tmp_path, caplog):
    """Faults: half a lesson changes the guide; an error of a lesson is a 500 or names a path."""
    before = client.get("/v1/guide").json()

    def teach(status, code, *said, task="sentiment", examples=REVIEWS):
        response = client.post("/v1/teach", json={"task": task, "examples": examples})
        refused(response, status, code, *said)

    teach(422, "empty", examples=[])
    teach(422, "too_many", examples=REVIEWS * 4)
    teach(422, "nothing_taught", examples=[{**one, "held_back": True} for one in REVIEWS])
    teach(422, "invalid", "sentiment", examples=[{"text": "a", "sentiment": "so"}])
    teach(422, "invalid", "task", task="recommendation")
    teach(422, "invalid", task="questions")
    for span in ([0, 99], [2, 1], [-1, 2], [0, 0], [1, 2]):
        one = {"question": "who?", "text": "a b", "answer": span}
        teach(422, "invalid", "examples[0].answer", task="questions", examples=[one])
    one = {"id": "gone", "category": "boat"}
    teach(422, "unknown_product", "gone", task="classification", examples=[one])
    teach(
        422,
        "invalid",
        "examples",
        task="classification",
        examples=[{**one, "id": "", "title": "a", "category": " "}],
    )
    refused(client.post("/v1/teach/save", json={}), 409, "cannot_save")
    assert client.get("/v1/guide").json() == before
    many = [{"text": f"good {n}", "sentiment": "positive", "held_back": False} for n in range(29)]
    teach(422, "too_many", "reset", examples=many)
    (tmp_path / "file").write_text("mine")
    with client_of(adapted, save_to=tmp_path / "file") as other:
        response = other.post("/v1/teach/save", json={})
        refused(response, 409, "save_failed")
        assert str(tmp_path) not in response.text
        assert f"could not be saved: {tmp_path / 'file'}" in caplog.text


@pytest.mark.slow
def test_no_lesson_begins_before_the_last_is_kept(adapted):
    """Fault: the next lesson begins while the first is done but not kept, and replaces it."""
    service = Service(adapted, LIMITS, Metrics())

    async def found():
        async with service._alone(lambda: time.sleep(0.05)):
            with pytest.raises(Refusal, match="another lesson runs"):
                await service.reset()
        await service.reset()
        with pytest.raises(ZeroDivisionError):
            async with service._alone(lambda: 1 / 0):
                pass
        await service.reset()

    asyncio.run(found())


@pytest.mark.slow
def test_answers_go_on_during_a_lesson_and_no_other_begins(adapted, monkeypatch):
    """Faults: a lesson blocks answers; two lessons at once lose one; a lesson that timed out is
    applied later, or blocks lessons for ever; an answer mixes two guides."""
    adapt, go_on = AdaptedGuide.adapt, threading.Event()

    def slow(self, support):
        go_on.wait(10)
        return adapt(self, support)

    limits = LIMITS._replace(lesson_seconds=1.0)
    said = {"task": "sentiment", "examples": REVIEWS}
    texts = [{"text": one["text"]} for one in REVIEWS]
    with client_of(adapted, limits=limits) as client, ThreadPoolExecutor(4) as pool:
        before = client.post("/v1/sentiment", json=texts).json()
        monkeypatch.setattr(AdaptedGuide, "adapt", slow)
        first = pool.submit(client.post, "/v1/teach", json=said)
        time.sleep(0.2)
        begun = time.perf_counter()
        assert client.post("/v1/sentiment", json=texts).json() == before
        assert time.perf_counter() - begun < 0.7
        refused(client.post("/v1/teach", json=said), 409, "lesson_running")
        refused(client.post("/v1/teach/reset", json={}), 409, "lesson_running")
        refused(first.result(), 504, "timeout")
        go_on.set()
        for _ in range(100):
            if client.post("/v1/teach/reset", json={}).status_code == 200:
                break
            time.sleep(0.05)
        assert client.post("/v1/sentiment", json=texts).json() == before
        monkeypatch.undo()
        seen = [pool.submit(client.post, "/v1/sentiment", json=texts) for _ in range(20)]
        taught = pool.submit(client.post, "/v1/teach", json=said)
        seen += [pool.submit(client.post, "/v1/sentiment", json=texts) for _ in range(20)]
        assert taught.result().status_code == 200
        after = client.post("/v1/sentiment", json=texts).json()
        assert after != before
        for one in seen:
            assert one.result().json() in (before, after)


@pytest.mark.slow
def test_a_server_that_cannot_start_says_what_to_change(adapted, monkeypatch, capsys):
    """Faults: Uvicorn's own message and a traceback; a guide is open to the network without a
    token; a host or a token of the arguments does not reach the application."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"127.0.0.1:{port}: .*in use; give another port"):
            serve(adapted, port=port)
    for host in ("0.0.0.0", "192.168.1.2", "::", "shop.example"):
        with pytest.raises(ServeError, match="give a token, or host 127.0.0.1"):
            serve(adapted, host=host)
    for host in ("203.0.113.7", "a" * 300):
        with pytest.raises(ServeError, match="give an address of this machine"):
            serve(adapted, host=host, token="a")
    with pytest.raises(ServeError, match="port is 70000"):
        serve(adapted, port=70000)
    with pytest.raises(ServeError, match="ASCII"):
        serve(adapted, token="ключ")
    assert is_loopback("localhost") and is_loopback("::1") and not is_loopback("8.8.8.8")
    seen = []

    def run(self, sockets):
        with TestClient(self.config.app, base_url="http://127.0.0.1") as client:
            seen.append((sockets[0].getsockname(), client.get("/v1/guide").status_code))
        raise KeyboardInterrupt  # as Uvicorn ends when interrupted

    monkeypatch.setattr(uvicorn.Server, "run", run)
    serve(adapted, port=0, token="s#e%cr&t")
    (((host, port), status),) = seen
    assert (host, status) == ("127.0.0.1", 401)
    assert f"open http://127.0.0.1:{port}/#token=s%23e%25cr%26t" in capsys.readouterr().out


def test_the_limits_are_documented():
    """Fault: a limit is added that its docstring does not name."""
    assert all(f"{name}:" in (Limits.__doc__ or "") for name in Limits._fields)
