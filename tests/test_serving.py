"""The service: every path, bad bodies, and a crowd of clients from another process."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from PIL import Image

from ctd_engine import Engine, ParallelSampler, StopReason, schedules
from ctd_engine.demo import demo_checkpoint
from ctd_engine.engine import Handle
from ctd_engine.result import SampleResult, SampleStats
from ctd_engine.serving.app import make_app
from ctd_engine.serving.bodies import BadBodyError, Limits, parse
from ctd_engine.serving.ledger import Ledger
from service_client import MALFORMED, Crowd, call, events, submit

CHECKPOINT = Path(__file__).parents[1] / "ctd_engine/assets/digits.safetensors"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The command itself, in a process of its own, on a free port."""
    command = [sys.executable, "-m", "ctd_engine", "serve", str(CHECKPOINT), "--port", "0"]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--json", "--max-rows", "64", "--max-queued", "40"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        url = json.loads(process.stdout.readline())["url"]
        yield url, process
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    # nothing was logged: no traceback, no warning
    assert log.read_text() == ""
    assert process.returncode == 0


def memory_bytes(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])


def test_from_request_to_result(server):
    url, _ = server
    reply = submit(url, num_steps=50, seed=3, tolerance=0.05, window_size=16)
    assert reply.status == 202
    name = reply.values["id"]
    path = f"/v1/requests/{name}"
    assert reply.headers["location"] == path
    told = events(url, name)
    assert [kind for kind, _ in told[-1:]] == ["end"]
    assert told[-1][1]["state"] == "finished"
    assert told[-1][1]["stop_reasons"] == ["CONVERGED"]
    values = call(url, "GET", path).values
    assert values["progress"] == 1.0
    samples = np.load(io.BytesIO(call(url, "GET", f"{path}/result?format=npy").body))
    trained = demo_checkpoint()
    sampler = ParallelSampler(
        trained.model,
        shape=trained.shape,
        schedule=trained.schedule,
        prediction=trained.prediction,
        num_steps=50,
        tolerance=0.05,
        window_size=16,
        clip_x0=1.0,
        max_rows=64,
    )
    alone = sampler.sample(1, seed=3, cond={"label": torch.tensor([1])})
    data = trained.config["data"]
    expected = alone.samples * data["scale"] + data["offset"]
    # another process may have other threads in its matrix products
    assert np.abs(samples - expected.numpy()).max() <= 1e-4
    assert values["rounds"] == alone.stats.rounds
    picture = call(url, "GET", f"{path}/result")
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.body)).size[0] >= 8


def test_previews_come_while_it_runs(server):
    url, _ = server
    name = submit(url, num_steps=300, window_size=2).values["id"]
    told = events(url, name, "?preview=1")
    previews = [values["preview_png"] for kind, values in told if "preview_png" in values]
    assert len(previews) >= 2
    Image.open(io.BytesIO(base64.b64decode(previews[0]))).verify()
    progress = [values["progress"] for _, values in told]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0


def test_guidance_and_cancelling(server):
    url, _ = server
    fields = {"num_samples": 2, "cond": {"label": [0, 9]}, "guidance_scale": 2.0}
    name = submit(url, num_steps=1000, window_size=4, **fields).values["id"]
    assert call(url, "GET", f"/v1/requests/{name}/result").status == 202
    assert call(url, "DELETE", f"/v1/requests/{name}").status == 202
    assert call(url, "GET", f"/v1/requests/{name}/result?wait=30").status == 200
    values = call(url, "GET", f"/v1/requests/{name}").values
    assert values["state"] == "cancelled"
    assert values["stop_reasons"] == ["CANCELLED"] * 2


def test_a_deadline(server):
    url, _ = server
    name = submit(url, num_steps=1000, window_size=1, deadline_s=0.2).values["id"]
    assert events(url, name)[-1][1]["stop_reasons"] == ["DEADLINE"]


@pytest.mark.parametrize("body, kind, status", MALFORMED, ids=range(len(MALFORMED)))
def test_bad_bodies(server, body, kind, status):
    url, _ = server
    reply = call(url, "POST", "/v1/requests", body, {"Content-Type": kind})
    assert reply.status == status
    assert reply.values["error"]


def test_bad_paths_and_queries(server):
    url, _ = server
    assert call(url, "GET", "/v1/requests/nobody").status == 404
    assert "no such request" in call(url, "DELETE", "/v1/requests/nobody").values["error"]
    assert call(url, "PUT", "/v1/requests").status == 405
    assert call(url, "GET", "/elsewhere").status == 404
    name = submit(url, num_steps=3).values["id"]
    path = f"/v1/requests/{name}/result"
    assert call(url, "GET", f"{path}?format=gif").status == 422
    for wait in ("-1", "nan", "1e9", "soon"):
        assert call(url, "GET", f"{path}?wait={wait}").status == 422
    assert submit(url, solver="nope").status == 422
    assert "solver" in submit(url, solver="nope").values["error"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "", "127.0.0.1.evil.example"]
)
def test_hosts_of_other_names_are_refused(server, host):
    url, _ = server
    reply = call(url, "GET", "/healthz", headers={"Host": host})
    assert reply.status == 421
    assert "answers for 127.0.0.1, [::1], localhost only" in reply.values["error"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "[::1]:8000", "[::1]"])
def test_hosts_of_loopback_are_answered(server, host):
    url, _ = server
    assert call(url, "GET", "/healthz", headers={"Host": host}).status == 200


def test_health_and_metrics(server):
    url, _ = server
    assert call(url, "GET", "/healthz").values == {"alive": True}
    before = call(url, "GET", "/metrics").body.decode()
    name = submit(url, num_steps=3).values["id"]
    call(url, "GET", f"/v1/requests/{name}/result?wait=30")
    after = call(url, "GET", "/metrics").body.decode()

    def value(text, metric):
        return float(re.search(rf"^{re.escape(metric)} (\S+)$", text, re.MULTILINE)[1])

    for metric in ('ctd_requests_total{state="finished"}', "ctd_request_seconds_count"):
        # others may end beside it
        assert value(after, metric) >= value(before, metric) + 1
    assert value(after, "ctd_model_rows_total") > value(before, "ctd_model_rows_total")


def test_a_crowd_of_500(server):
    url, process = server
    crowd = Crowd(url)
    crowd.run(150, seed=1)
    warm = memory_bytes(process)
    crowd.run(500, seed=2)
    assert crowd.problems == []
    assert crowd.outcomes["answered"] == 0.8 * 650
    assert crowd.outcomes["refused"] == crowd.outcomes["hung up"] == crowd.outcomes["cancelled"]
    # what hung up is done with, too
    for _ in range(300):
        text = call(url, "GET", "/metrics").body.decode()
        if "ctd_running 0.0" in text and "ctd_queued 0.0" in text:
            break
    else:
        pytest.fail("requests are left over")
    assert memory_bytes(process) - warm < 30 * 2**20


@pytest.mark.parametrize(
    "body, message",
    [
        (b'{"num_samples": true}', "num_samples must be an integer, got a boolean"),
        (b'{"num_samples": 65}', "num_samples must be at most 64 here, got 65"),
        (b'{"num_steps": 4001}', "num_steps must be at most 4000"),
        (b'{"tolerance": NaN}', "NaN is not JSON"),
        (b'{"cond": {"label": 3}}', "must be a list with an entry per sample"),
        (b'{"cond": {"label": ["a"]}}', "must hold numbers"),
        (b'{"cond": {"label": []}}', "must hold numbers"),
        (b'{"cond": {"label": [[1], [1, 2]]}}', "must hold numbers"),
        (b'{"priority": 0}', "priority must be from 0.001 to 1000, got 0"),
        (b'{"priority": 1%s}' % (b"0" * 400), "priority must be finite"),
        (b'{"noise": 1}', "unknown field 'noise'"),
        (b"\xff", "must be a JSON object"),
        (b"[" * 100_000, "must be a JSON object"),
    ],
)
def test_bodies_that_are_refused(body, message):
    with pytest.raises(BadBodyError, match=re.escape(message)):
        parse(body, Limits(), {})


def test_a_body_becomes_a_request():
    request = parse(b'{"num_steps": 7, "cond": {"label": [2, 3]}}', Limits(), {"clip_x0": 1.0})
    assert (request.num_steps, request.clip_x0) == (7, 1.0)
    assert request.cond["label"].tolist() == [2, 3]


def test_results_are_kept_by_number_and_by_size():
    def ended(number):
        handle = Handle(1)
        if number == 0:
            handle.fail(ValueError("no result"))
        else:
            samples = torch.zeros(1, 25, dtype=torch.float32)
            stats = SampleStats(1, 1, 0.0, np.ones(1), np.ones(1), 0, [], None)
            handle.finish(SampleResult(samples, stats, [StopReason.CONVERGED], [0]))
        return handle

    def kept(most_ended, most_bytes, numbers):
        ledger = Ledger(most_ended, most_bytes)
        names = [ledger.add(ended(number)) for number in numbers]
        return [ledger.find(name) is not None for name in names]

    assert kept(3, 10**6, range(5)) == [False, False, True, True, True]
    assert kept(9, 250, range(5)) == [False, False, False, True, True]
    assert kept(9, 50, range(1, 4)) == [False, False, True]
    assert kept(9, 100, [1, 0]) == [True, True]


@contextmanager
def served(app):
    """An application on a free port, in a thread."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


def test_samples_that_are_no_pictures_have_events_all_the_same():
    engine = Engine(lambda x, t: 0.1 * x, shape=(3,), schedule=schedules.cosine())
    with served(make_app(engine)) as url:
        body = {"num_steps": 300, "window_size": 1}
        name = call(url, "POST", "/v1/requests", body).values["id"]
        told = events(url, name, "?preview=1")
        assert told[-1][0] == "end"
        errors = [values["preview_error"] for _, values in told if "preview_error" in values]
        assert "a picture needs samples [B, 1 or 3, H, W], got [1, 3]" in errors[0]
        path = f"/v1/requests/{name}/result"
        assert call(url, "GET", path).status == 422
        assert np.load(io.BytesIO(call(url, "GET", f"{path}?format=npy").body)).shape == (1, 3)


def test_a_port_that_is_taken_is_one_line(server):
    url, _ = server
    port = url.rpartition(":")[2]
    command = [sys.executable, "-m", "ctd_engine", "serve", str(CHECKPOINT), "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
