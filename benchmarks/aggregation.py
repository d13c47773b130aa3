"""What it costs that the server cannot read: keyed sums against the plain mean, in one run.

Five sites send a model of 1 and 10 million parameters. Prints milliseconds at one site to encode what it sends and to
decode what comes back (which derives the key stream of every site); milliseconds at the server to add, beside plain
integer summing of as many integers, and to verify the signature of one upload (a hash of all its bytes, done as it
arrives); bytes a site over those of float32; and the largest error against the mean in float64, beside that of rounding
the mean to float32.

    OMP_NUM_THREADS=1 python benchmarks/aggregation.py [--parameters 1000000 10000000] [--sites 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np
import pandas as pd

import scinfl as si
from scinfl.federation import FedAvg, Update

REPEATS = 7


def timed(function):
    """Median seconds over a few repeats, and the last result."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), result


def measure(n_parameters, n_sites, bits):
    generator = np.random.default_rng(0)
    updates = [
        Update(
            f"site_{number}",
            1,
            {"w": generator.normal(0, 0.1, n_parameters).astype(np.float32)},
            100 + number,
            100.0 + number,
            {"loss": 1.0},
        )
        for number in range(n_sites)
    ]
    exact = sum(u.state["w"].astype(np.float64) * u.weight for u in updates) / sum(u.weight for u in updates)
    protection = si.privacy.KeyedSum(si.privacy.Key.generate(), bits=bits)
    protection.agree("training", {update.site: update.weight for update in updates})
    encode_all, decode = [], []
    plain_mean = timed(lambda: FedAvg().reduce(updates))[0]
    for _ in range(REPEATS):
        for update in updates:
            started = time.perf_counter()
            protection.encode(update)
            encode_all.append(time.perf_counter() - started)
        protection._rounds.clear()
    encoded = [protection.encode(update) for update in updates]
    arrays = [update.state["masked"] for update in encoded]
    add = timed(lambda: sum(arrays[1:], start=arrays[0].copy()))[0]
    server = si.privacy.BlindServer(protection._public())
    verify = timed(lambda: [server.verify(update) for update in encoded])[0]
    combine, combined = timed(lambda: protection.combine(encoded))
    for repeat in range(REPEATS):
        if repeat:
            encoded = [protection.encode(update) for update in updates]
            combined = protection.combine(encoded)
        members = [replace(update, state={}) for update in encoded]
        started = time.perf_counter()
        mean = protection.decode(combined, members)
        decode.append(time.perf_counter() - started)
    error = np.abs(mean.state["w"] - exact).max()
    rounding = np.abs(exact.astype(np.float32) - exact).max()
    milliseconds = {
        "encode": statistics.median(encode_all),
        "decode": statistics.median(decode),
        "add": combine - verify,
        "(integer sum)": add,
        "verify one": verify / n_sites,
        "(plain mean)": plain_mean,
    }
    return {
        **{name: f"{1e3 * seconds:.1f}" for name, seconds in milliseconds.items()},
        "bytes": f"{encoded[0].n_bytes / updates[0].n_bytes:.2f}",
        "max error": f"{error:.1e}",
        "(float32 rounding)": f"{rounding:.1e}",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--sites", type=int, default=5)
    options = parser.parse_args()
    rows = {
        (n_parameters, bits): measure(n_parameters, options.sites, bits)
        for n_parameters in options.parameters
        for bits in (64, 32)
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(index=["parameters", "bits"])
    print("milliseconds; bytes of one site over float32; errors against the mean in float64\n")
    print(table.to_string())


if __name__ == "__main__":
    main()
