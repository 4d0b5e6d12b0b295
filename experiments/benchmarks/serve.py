"""The server under load: clients that ask without pause, on the loopback.

python -m experiments.benchmarks.serve --run=runs/guide --domain=runs/guide/bazaar/toys

A server of the guide, adapted to the domain, runs in a process of its own; with `--url` one that
runs already is asked. Each client sends one example, waits for the answer, and sends the next; the
tasks take turns. Texts are reviews, questions and products of the domain, in random order, so that
most requests differ. Clients share one process, which takes its part of the machine's cores.

Latency is what a client waits, from its request to the last byte. A second of warming up is not
counted. Anything but an answer of status 200 is an error.
"""

import asyncio
import json
import multiprocessing
import sys
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from metaguide.data.catalogue import Domain, read_domain
from metaguide.files import write_json

RUN = flags.DEFINE_string("run", None, "folder of a run of experiments.guide")
DOMAIN = flags.DEFINE_string("domain", None, "folder of the domain to adapt to and ask about")
URL = flags.DEFINE_string("url", None, "address of a running server; one is started without it")
TOKEN = flags.DEFINE_string("token", "", "its token")
CLIENTS = flags.DEFINE_integer("clients", 200, "number of clients", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 60.0, "how long they ask", lower_bound=0.1)
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write the rows to")

WARM = 1.0
"""Seconds before what is counted begins."""


class Asked(NamedTuple):
    """A request: its task, and all its bytes."""

    task: str
    content: bytes


class Heard(NamedTuple):
    """A response: the task, seconds since the start, seconds waited, and status (0 if broken)."""

    task: str
    at: float
    waited: float
    status: int


def requests_of(domain: Domain, host: str, token: str) -> list[Asked]:
    """Return a request for each example of a domain, in random order, the tasks in turn."""
    bodies: dict[tuple[str, str], list[Any]] = {
        ("classification", "/v1/classify"): [
            {"title": one.title, "description": one.description} for one in domain.products
        ],
        ("sentiment", "/v1/sentiment"): [{"text": one.text} for one in domain.reviews],
        ("questions", "/v1/answer"): [
            {"question": one.question, "text": one.text} for one in domain.questions
        ],
        ("recommendation", "/v1/recommend"): [
            {"products": [one.id, other.id]}
            for one, other in zip(domain.products, domain.products[1:], strict=False)
        ],
    }
    rng, asked = np.random.default_rng(0), []
    for (task, path), examples in bodies.items():
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {token}\r\n" if token else ""
        for row in rng.permutation(len(examples)):
            body = json.dumps([examples[row]]).encode()
            content = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
            asked.append((int(row), Asked(task, content)))
    return [one for _, one in sorted(asked, key=lambda pair: pair[0])]


async def client(
    host: str, port: int, asked: Sequence[Asked], start: float, stop: float
) -> list[Heard]:
    """Ask one request after another until the time is up, reconnecting if need be."""
    heard: list[Heard] = []
    reader = writer = None
    for number in range(sys.maxsize):
        begun = time.perf_counter()
        if begun > stop:
            break
        one, status = asked[number % len(asked)], 0
        try:
            if writer is None or reader is None:
                reader, writer = await asyncio.open_connection(host, port)
            writer.write(one.content)
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            length = head.lower().split(b"content-length:")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
        except (OSError, EOFError, IndexError, ValueError):
            writer = None
        now = time.perf_counter()
        heard.append(Heard(one.task, begun - start, now - begun, status))
    if writer is not None:
        writer.close()
    return heard


async def load(url: str, domain: Domain, token: str, clients: int, seconds: float) -> list[Heard]:
    """Return what all clients heard."""
    where = urllib.parse.urlsplit(url)
    host, port = where.hostname or "127.0.0.1", where.port or 80
    asked = requests_of(domain, where.netloc, token)
    start = time.perf_counter()
    rows = [round(number * len(asked) / clients) for number in range(clients)]
    found = await asyncio.gather(
        *(client(host, port, asked[r:] + asked[:r], start, start + WARM + seconds) for r in rows)
    )
    return [one for of_client in found for one in of_client if one.at >= WARM]


def rows_of(heard: Sequence[Heard], seconds: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each task and for all: rate, latency in milliseconds, and errors."""
    for task in (*dict.fromkeys(one.task for one in heard), "all"):
        of_task = [one for one in heard if task in (one.task, "all")]
        waited = 1000 * np.array([one.waited for one in of_task])
        errors = Counter(str(one.status) for one in of_task if one.status != 200)
        yield {
            "task": task,
            "per_second": len(of_task) / seconds,
            **{f"p{rank}": float(np.percentile(waited, rank)) for rank in (50, 99)},
            "slowest": float(waited.max()),
            "errors": dict(errors),
        }


def run_server(run: str, domain: str, ready: Any) -> None:
    """Adapt a guide and serve it; sends the port and the seconds of compilation."""
    import socket

    import uvicorn

    import metaguide
    from metaguide.web import create_app

    guide = metaguide.load(run).adapt(domain)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(2048)
        port = listening.getsockname()[1]
        served = create_app(guide, ready=lambda seconds: ready.send((port, seconds)))
        config = uvicorn.Config(served, log_config=None, access_log=False)
        uvicorn.Server(config).run(sockets=[listening])


def main(args: Sequence[str]) -> None:
    """Measure, print the table, write the rows."""
    if args[1:] or not DOMAIN.value or not (RUN.value or URL.value):
        raise app.UsageError("give --domain, and --run or --url")
    url, server, warm = URL.value, None, None
    if url is None:
        context = multiprocessing.get_context("spawn")
        ready, sent = context.Pipe()
        arguments = RUN.value, DOMAIN.value, sent
        server = context.Process(target=run_server, args=arguments, daemon=True)
        server.start()
        port, warm = ready.recv()
        url = f"http://127.0.0.1:{port}"
    domain = read_domain(Path(DOMAIN.value))
    heard = asyncio.run(load(url, domain, TOKEN.value, CLIENTS.value, SECONDS.value))
    rows = list(rows_of(heard, SECONDS.value))
    asking = urllib.request.Request(f"{url}/metrics")
    if TOKEN.value:
        asking.add_header("Authorization", f"Bearer {TOKEN.value}")
    with urllib.request.urlopen(asking) as response:
        counted = response.read().decode()
    if server is not None:
        server.terminate()
    title = f"{CLIENTS.value} clients, {SECONDS.value:g} s"
    table = Table(title=title + ("" if warm is None else f"; compiled in {warm:.1f} s"))
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "task" else "right")
    for row in rows:
        values = [f"{v:.1f}" if isinstance(v, float) else str(v or "none") for v in row.values()]
        table.add_row(*values)
    Console().print(table)
    for line in counted.splitlines():
        if line.startswith(("metaguide_batch_examples_sum", "metaguide_batch_examples_count")):
            print(line)
    if OUTPUT.value:
        write_json(Path(OUTPUT.value), {"compiled": warm, "rows": rows})


if __name__ == "__main__":
    app.run(main)
