"""Measure sets that are too large for memory: the figures of docs/scale.md.

    python scripts/large_sets.py [--rows 1000000] [--files 100000] [--only parquet,metadata,sidecar,tar,order]

Synthetic sets are built in a temporary folder (about 1 GB at full size) and removed. Every figure is taken in a process
of its own: seconds from before ``load_data`` until the first batch is there, and by how much the process grew at its
largest.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

_SIZE = 8
_BATCH = 64
_DIFFERENT = 4096  # pictures; the others are these again
_ROW_GROUP = 1000
_FILE_ROWS = 100_000
_RANKS = 1024


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--only", default="parquet,metadata,sidecar,tar,order")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure_order() if arguments.measure == "order" else measure_set(arguments.measure)))
        return
    sets: dict[str, Callable[[Path], object]] = {
        "parquet": lambda folder: build_parquet(folder, arguments.rows),
        "metadata": lambda folder: build_files(folder, arguments.files, with_metadata=True),
        "sidecar": lambda folder: build_files(folder, arguments.files, with_metadata=False),
        "tar": lambda folder: build_tars(folder, arguments.files),
    }
    with tempfile.TemporaryDirectory(prefix="unstir-large-") as scratch:
        os.environ["XDG_CACHE_HOME"] = str(Path(scratch) / "cache")
        for name in arguments.only.split(","):
            if name == "order":
                told("the order of 10^9 rows", "order")
                continue
            folder = Path(scratch) / name
            folder.mkdir()
            sets[name](folder)
            if name != "parquet":
                time.sleep(3)  # an index of files that were written a moment ago is not kept
            for how in ["parquet"] if name == "parquet" else [f"{name}, no index", f"{name}, with the index"]:
                told(how, str(folder))
            shutil.rmtree(folder)


def told(name: str, what: str) -> None:
    """Measure in a fresh process, and print."""
    command = [sys.executable, __file__, "--measure", what]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(f"{name}: {done.stdout.strip()}", flush=True)


def measure_set(folder: str) -> dict[str, object]:
    """Time and memory of one set."""
    from unstir.conditioning.captions import Wording
    from unstir.conditioning.text import WordReader
    from unstir.model import ModelConfig
    from unstir.training.batches import Captioned, batch_of
    from unstir.training.run import RunConfig, load_data

    reader = WordReader.train(["picture 1 of 2"], vocabulary=300, max_tokens=16)

    def batch(data: Captioned, start: int) -> str:
        [(pictures, condition, _)] = batch_of(data, reader, Wording(), seed=0, start=start, count=_BATCH, drop=0.1)
        return sha256(pictures.numpy().tobytes() + condition.words.numpy().tobytes()).hexdigest()[:8]

    config = RunConfig(data=folder, model=ModelConfig(size=_SIZE))
    grown()
    before = grown()
    started, busy = time.perf_counter(), time.process_time()
    data = load_data(config).train
    loaded = time.perf_counter() - started
    first = batch(data, 0)
    seconds = time.perf_counter() - started
    busy = time.process_time() - busy
    at_first = grown()
    # The middle of a row group of the third epoch, reached at once and after other places.
    place = int(2.4 * data.showings)
    started = time.perf_counter()
    there = batch(data, place)
    jump = time.perf_counter() - started
    started = time.perf_counter()
    for step in range(1, 201):
        batch(data, place + step * _BATCH)
    each = (time.perf_counter() - started) / 200
    assert (batch(data, place), batch(data, 0)) == (there, first)
    return {
        "pictures": len(data),
        "seconds to first batch": round(seconds, 2),
        "CPU seconds to first batch": round(busy, 2),
        "of which load_data": round(loaded, 2),
        "seconds to batch of epoch 3": round(jump, 2),
        f"ms a batch of {_BATCH} after it": round(each * 1000, 1),
        "MiB grown at first batch": at_first - before,
        "MiB grown at 200 batches": grown() - before,
        "first batch": first,
        "batch of epoch 3": there,
    }


def measure_order() -> dict[str, object]:
    """Time and memory of the order of 10^9 rows in 10^6 groups, as 1,024 ranks ask for it."""
    from unstir.data.order import GroupOrder

    GroupOrder(sizes=np.array([3]), lanes=1).places(0, [0])  # imports
    grown()
    before = grown()
    order = GroupOrder(sizes=np.full(10**6, 1000), lanes=64)
    place = 5 * 10**9 // 2  # in the middle of the third epoch
    each = 4096 // _RANKS
    started = time.perf_counter()
    order.places(0, range(place, place + each))
    first = time.perf_counter() - started
    step = range(place, place + 4096)
    started = time.perf_counter()
    slices = [order.places(0, step[rank * each : (rank + 1) * each]) for rank in range(_RANKS)]
    all_ranks = time.perf_counter() - started
    assert [row for one in slices for row in one] == order.places(0, step)
    started = time.perf_counter()
    for number in range(1, 101):  # one rank, over more than its lanes' first groups
        order.places(0, range(place + number * 4096, place + number * 4096 + each))
    later = (time.perf_counter() - started) / 100
    return {
        "seconds to a rank's first slice in an epoch": round(first, 3),
        "ms a rank and step after it": round(later * 1000, 3),
        "ms for the slices of 1024 ranks": round(all_ranks * 1000, 1),
        "MiB grown": grown() - before,
    }


def grown() -> int:
    """The largest that this process was since this was last asked for, in MiB."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    Path("/proc/self/clear_refs").write_text("5")
    return int(status["VmHWM"].split()[0]) // 1024


def pictures() -> list[bytes]:
    """Some PNGs of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (_DIFFERENT, _SIZE, _SIZE, 3), dtype=np.uint8)
    made: list[bytes] = []
    for one in pixels:
        buffer = io.BytesIO()
        Image.fromarray(one).save(buffer, "png")
        made.append(buffer.getvalue())
    return made


def build_parquet(folder: Path, rows: int) -> None:
    """Files of 100,000 rows, in row groups of 1,000."""
    import pyarrow as pa
    from pyarrow import parquet

    made = pictures()
    count = -(-rows // _FILE_ROWS)
    for number in range(count):
        index = range(number * _FILE_ROWS, min((number + 1) * _FILE_ROWS, rows))
        image = [{"bytes": made[i % _DIFFERENT], "path": None} for i in index]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array(image, kind), "text": [f"picture {i} of {rows}" for i in index]})
        name = folder / f"train-{number:05d}-of-{count:05d}.parquet"
        parquet.write_table(table, name, row_group_size=_ROW_GROUP, use_dictionary=False)


def build_files(folder: Path, count: int, *, with_metadata: bool) -> None:
    """Small files, 1,000 in a folder."""
    made = pictures()
    lines: list[str] = []
    for i in range(count):
        name = f"{i // 1000:03d}/{i % 1000:03d}"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.png").write_bytes(made[i % _DIFFERENT])
        if with_metadata:
            lines.append(json.dumps({"file_name": f"{name}.png", "text": f"picture {i} of {count}"}))
        else:
            (folder / f"{name}.txt").write_text(f"picture {i} of {count}\n")
    if with_metadata:
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def build_tars(folder: Path, count: int) -> None:
    """Shards of 10,000 samples."""
    made = pictures()
    for first in range(0, count, 10_000):
        with tarfile.open(folder / f"x-{first // 10_000:06d}.tar", "w") as tar:
            for i in range(first, min(first + 10_000, count)):
                for suffix, data in ((".png", made[i % _DIFFERENT]), (".txt", f"picture {i} of {count}".encode())):
                    member = tarfile.TarInfo(f"{i:08d}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main()
