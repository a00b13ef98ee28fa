"""ctd-engine serve"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from pathlib import Path

import click
import torch

from ctd_engine.cli._common import emit, json_option, one_line_errors
from ctd_engine.engine import Engine, Request
from ctd_engine.training.checkpoint import Checkpoint, load_checkpoint

__all__ = ["serve"]

# seconds that connections get to end in, once the server was told to stop
GRACE_S = 5


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Loopback: nobody else.")
@click.option("--port", type=int, default=8000, show_default=True, help="0 takes a free one.")
@click.option("--max-rows", type=int, default=256, show_default=True, help="Rows per model call.")
@click.option("--max-active", type=int, default=64, show_default=True, help="Requests that run.")
@click.option("--max-queued", type=int, default=1024, show_default=True, help="That wait at most.")
@click.option("--device", default="cpu", show_default=True)
@json_option
@one_line_errors
def serve(
    checkpoint: Path,
    host: str,
    port: int,
    max_rows: int,
    max_active: int,
    max_queued: int,
    device: str,
    as_json: bool,
) -> None:
    """Serve CHECKPOINT over HTTP until Ctrl-C; docs/engine.md tells the paths.

    There is no password: on another host than loopback put a proxy in front that asks for one.
    """
    try:
        import uvicorn

        from ctd_engine.serving.app import make_app
        from ctd_engine.serving.hosts import LOOPBACK
    except ImportError as error:
        raise RuntimeError(f"{error}; pip install 'ctd_engine[serve]'") from error
    trained = load_checkpoint(checkpoint)
    num_classes = trained.config.get("num_classes")
    # first of all the port, which may be taken
    listener = socket.create_server((host, port))
    engine = Engine(
        trained.model.to(device),
        shape=trained.shape,
        schedule=trained.schedule,
        prediction=trained.prediction,
        null_cond=None if num_classes is None else {"label": torch.tensor([num_classes])},
        max_rows=max_rows,
        max_active=max_active,
        max_queued=max_queued,
        device=device,
    )
    data = trained.config["data"]
    address, number = listener.getsockname()[:2]
    is_loopback = ipaddress.ip_address(address).is_loopback
    app = make_app(
        engine,
        defaults={"clip_x0": 1.0} if len(trained.shape) == 3 else {},
        check=lambda request: _check_label(request, trained),
        to_data=lambda samples: samples.cpu() * data["scale"] + data["offset"],
        hosts=LOOPBACK if is_loopback else None,
    )
    url = f"http://[{address}]:{number}" if ":" in address else f"http://{address}:{number}"
    emit({"url": url}, f"serving {checkpoint} on {url}; Ctrl-C ends it", as_json)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_S)
    )
    # uvicorn raises it again once it has ended
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


def _check_label(request: Request, trained: Checkpoint) -> None:
    num_classes = trained.config.get("num_classes")
    cond = request.cond or {}
    wanted = set() if num_classes is None else {"label"}
    if set(cond) != wanted:
        raise ValueError(f"cond must have the keys {sorted(wanted)}, got {sorted(cond)}")
    if num_classes is not None:
        label = cond["label"]
        is_right = label.dim() == 1 and not label.is_floating_point()
        if not is_right or int(label.min()) < 0 or int(label.max()) >= num_classes:
            raise ValueError(
                f"cond['label'] must hold an integer from 0 to {num_classes - 1} per sample"
            )
