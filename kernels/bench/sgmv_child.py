"""Measures one peer beside us at every point of the grid, in a process of its own: a kernel that damages the device
takes only this peer's rows with it.

Writes a line of JSON per point as soon as it is known: {"point", "ours_us", "peer_us", "bytes", "note"}, where a figure
is null when there is none and the note says why; first a line {"bandwidth", "launch_us", "device"}.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch

from kernels.bench.clock import Timed, copy_bandwidth, in_turns, launch_us
from kernels.bench.peers.base import Peer, PeerMissing
from kernels.bench.peers.ours import Ours
from kernels.bench.peers.punica import Bgmv, Sgmv
from kernels.bench.peers.sglang import Csgmv, TritonV2
from kernels.bench.peers.torch_ops import AllSlots, GroupedProducts
from kernels.bench.peers.vllm import Vllm
from kernels.bench.sgmv_points import Point, Problem, grid, point_bytes
from kernels.triton_jit import interpreting

PEERS: Final[dict[str, Callable[[Path], Peer]]] = {
    "vLLM": Vllm,
    "vLLM tuned": lambda root: Vllm(root, tuned=True),
    "SGLang csgmv": Csgmv,
    "SGLang triton_v2": TritonV2,
    "Punica bgmv": Bgmv,
    "Punica sgmv": Sgmv,
    "torch grouped_mm": lambda _: GroupedProducts(),
    "cuBLAS all slots": lambda _: AllSlots(),
}
# Half precision's rounding of y and of one intermediate; an implementation beyond it computes something else.
MOST_WRONG: Final = 5e-3


def error_of(peer: Peer, problem: Problem) -> float:
    """How far the peer's first set is from float64, relative to its norm; y is as before afterwards."""
    before, wanted = problem.y.clone(), problem.expected(0)
    peer.operations(problem)[0]()
    error = float((problem.y[0].double() - wanted).norm() / wanted.norm())
    problem.y.copy_(before)
    return error


def measured(
    point: Point, peer: Peer, device: torch.device, dtype: torch.dtype, repeats: int, sets: int
) -> dict[str, Any]:
    """One line. Raises PeerMissing; any other exception is the peer's, or ours, and becomes a note."""
    problem = Problem(point, device, dtype, sets)
    for name, one in (("ours", Ours()), ("the peer", peer)):
        error = error_of(one, problem)
        if not error <= MOST_WRONG:
            raise PeerMissing(f"{name} is off by {error:.1e}")
    lists = [Timed(one.operations(problem), device) for one in (Ours(), peer)]
    ours, theirs = in_turns(lists, repeats)
    return {"ours_us": ours, "peer_us": theirs, "note": ""}


def lines(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The first line, then one per point until the time is over."""
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    name = torch.cuda.get_device_name() if device.type == "cuda" else "interpreter"
    yield {"bandwidth": copy_bandwidth(device), "launch_us": launch_us(device), "device": name}
    end = time.monotonic() + arguments.seconds
    try:
        peer = PEERS[arguments.peer](arguments.peers_folder)
    except PeerMissing as missing:
        yield {"missing": str(missing)}
        return
    for point in grid(arguments.points):
        line: dict[str, Any] = {"ours_us": None, "peer_us": None}
        if time.monotonic() > end:
            line["note"] = "no time was left"
        else:
            try:
                line = measured(point, peer, device, dtype, arguments.repeats, arguments.sets)
            except PeerMissing as missing:
                line["note"] = str(missing)
            except Exception as error:
                line["note"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        yield {"point": list(point), "bytes": point_bytes(point), **line}


def parser() -> argparse.ArgumentParser:
    """Options that the parent passes on."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--points", default="quick", choices=("full", "quick", "tiny"))
    options.add_argument("--peers-folder", type=Path, default=Path("peers/gpu"))
    options.add_argument("--seconds", type=float, default=60.0, help="for each peer")
    options.add_argument("--repeats", type=int, default=9)
    options.add_argument("--sets", type=int, default=512, help="most sets of a point's data")
    options.add_argument("--device", default="cuda")
    return options


def main() -> None:
    """Writes to the file named by --out."""
    options = parser()
    options.add_argument("--peer", required=True, choices=list(PEERS))
    options.add_argument("--out", type=Path, required=True)
    arguments = options.parse_args()
    inside: AbstractContextManager[None] = nullcontext() if arguments.device == "cuda" else interpreting()
    with inside, torch.inference_mode(), arguments.out.open("w", encoding="utf-8") as out:
        for line in lines(arguments):
            print(json.dumps(line), file=out, flush=True)


if __name__ == "__main__":
    main()
