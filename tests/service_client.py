"""A client of the service with nothing but the standard library, and crowds of them."""

from __future__ import annotations

import http.client
import io
import json
import queue
import random
import socket
import threading
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

TIMEOUT = 60.0


@dataclass
class Reply:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def values(self):
        return json.loads(self.body)


def call(url, method, path, body=None, headers=None):
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT)
    try:
        if isinstance(body, dict):
            body, headers = json.dumps(body), {"Content-Type": "application/json"}
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        return Reply(reply.status, reply.read(), {k.lower(): v for k, v in reply.getheaders()})
    finally:
        connection.close()


def submit(url, **fields):
    return call(url, "POST", "/v1/requests", {"cond": {"label": [1]}, **fields})


def events(url, name, query=""):
    """All events of a request: pairs of name and values."""
    reply = call(url, "GET", f"/v1/requests/{name}/events{query}")
    assert reply.status == 200
    pairs = []
    for block in reply.body.decode().strip().split("\n\n"):
        if not block.startswith(":"):
            kind, data = block.split("\n")
            pairs.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return pairs


MALFORMED = [
    (b"{", "application/json", 422),
    (b"[1, 2]", "application/json", 422),
    (b'{"num_steps": "many"}', "application/json", 422),
    (b'{"num_steps": 10, "cond": {"label": [77]}}', "application/json", 422),
    (b'{"cond": {"label": [1]}, "colour": 3}', "application/json", 422),
    (b"{}", "text/plain", 415),
    (b'"' + 70_000 * b"x" + b'"', "application/json", 413),
]


@dataclass
class Crowd:
    """Many clients at once; `outcomes` counts what they saw."""

    url: str
    outcomes: Counter = field(default_factory=Counter)
    problems: list = field(default_factory=list)

    def run(self, count, num_threads=12, seed=0):
        work = queue.SimpleQueue()
        for number in range(count):
            work.put(number)

        def client():
            while True:
                try:
                    number = work.get_nowait()
                except queue.Empty:
                    return
                try:
                    self._one(number, random.Random(1000 * seed + number))
                except Exception as error:
                    self.problems.append((number, repr(error)))

        threads = [threading.Thread(target=client) for _ in range(num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT * 4)
        assert not any(thread.is_alive() for thread in threads)

    def _one(self, number, chance):
        if number % 10 == 7:
            body, kind, status = MALFORMED[chance.randrange(len(MALFORMED))]
            reply = call(self.url, "POST", "/v1/requests", body, {"Content-Type": kind})
            assert reply.status == status, (reply.status, reply.body, body[:50])
            assert reply.values["error"]
            self.outcomes["refused"] += 1
            return
        if number % 10 == 3:
            self._hang_up(chance)
            self.outcomes["hung up"] += 1
            return
        steps = chance.choice([5, 10, 20])
        reply = submit(self.url, num_steps=steps, seed=number, window_size=8)
        while reply.status == 429:
            self.outcomes["told to wait"] += 1
            threading.Event().wait(float(reply.headers["retry-after"]) / 10)
            reply = submit(self.url, num_steps=steps, seed=number, window_size=8)
        assert reply.status == 202, (reply.status, reply.body)
        path = f"/v1/requests/{reply.values['id']}"
        if number % 10 == 5:
            assert call(self.url, "DELETE", path).status == 202
            self.outcomes["cancelled"] += 1
        result = call(self.url, "GET", f"{path}/result?format=npy&wait=60")
        assert result.status == 200, (result.status, result.body)
        assert np.load(io.BytesIO(result.body)).shape == (1, 1, 8, 8)
        self.outcomes["answered"] += 1

    def _hang_up(self, chance):
        host, port = urlsplit(self.url).netloc.split(":")
        with socket.create_connection((host, int(port)), timeout=TIMEOUT) as raw:
            if chance.random() < 0.5:
                # half a request
                raw.sendall(
                    b"POST /v1/requests HTTP/1.1\r\nHost: localhost\r\n"
                    b"Content-Type: application/json\r\n"
                    b'Content-Length: 1000\r\n\r\n{"num_steps": 5'
                )
                return
            name = submit(self.url, num_steps=20, window_size=2).values.get("id")
            if name is not None:
                path = f"/v1/requests/{name}/events?preview=1".encode()
                raw.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
                raw.recv(64)
