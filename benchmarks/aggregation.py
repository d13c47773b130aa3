"""What it costs that the server cannot read: masked and encrypted sums against the plain mean, in one run.

Five sites send a model of 1 and 10 million parameters. Prints milliseconds of one site to encode what it sends (with
its part of the exchange that pairwise masks need) and to decode what comes back, of the server to check and add what
all sites sent, and their total: the path of a round with the sites at work side by side. In the total are the
signatures of what is sent (a hash of all its bytes at the site, and of all sites' at the server), which CKKS goes
without, like the tags of keyed sums. Then the bytes that a site sends over those of float32, the largest error against
the mean in float64 (rounding to float32 is in all of them), and total and bytes over those of KeyedSum with 64 bits.
Milliseconds are those of the processor and of one thread, so that other work on the machine counts little.

"CKKS, smallest" is HomomorphicSum as it comes: one prime and symmetric encryption, the least that adds.
"CKKS, common" has the parameters of TenSEAL's own tutorials, modulus (60, 40, 40, 60) and the public key.

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
from scinfl.privacy.aggregation._homomorphic_sum import HomomorphicSum
from scinfl.privacy.aggregation._pairwise_sum import PairwiseSum

REFERENCE = "KeyedSum, 64 bits"
MOST_FOR_CKKS = 1_000_000


def protections(key):
    yield REFERENCE, lambda: si.privacy.KeyedSum(key)
    yield "KeyedSum, 32 bits", lambda: si.privacy.KeyedSum(key, bits=32)
    yield "PairwiseSum(), 64 bits", PairwiseSum
    yield "PairwiseSum(key), 64 bits", lambda: PairwiseSum(key)
    yield "PairwiseSum(key), 32 bits", lambda: PairwiseSum(key, bits=32)
    yield "CKKS, smallest", HomomorphicSum
    yield "CKKS, common", lambda: HomomorphicSum(modulus_bits=(60, 40, 40, 60), encryption="asymmetric")


def make_updates(n_parameters, n_sites):
    generator = np.random.default_rng(0)
    return [
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


def timed(function, *arguments):
    started = time.process_time()
    result = function(*arguments)
    return 1e3 * (time.process_time() - started), result


def one_round(protection, updates):
    """Milliseconds of one site, of the server and of one site again; what was sent and what came of it."""
    sites = [update.site for update in updates]
    protection.agree("training", {update.site: update.weight for update in updates})
    exchange = 0.0
    if hasattr(protection, "exchange"):
        exchange = timed(protection.exchange, "training", 1, sites)[0] / len(sites)
    encode, first = timed(protection.encode, updates[0])  # later sites of this process find the projection derived
    encoded = [first, *map(protection.encode, updates[1:])]
    server, combined = timed(protection.combine, encoded)
    members = [replace(update, state={}) for update in encoded]
    decode, mean = timed(protection.decode, combined, members)
    signatures = 0.0
    if "signature" in first.header:
        verify = si.privacy.aggregation.Aggregator(protection._public()).verify
        signatures = timed(verify, first)[0] * (1 + len(sites))  # signing takes as long: nearly all of it is the hash
    return (exchange + encode, server, decode, signatures), first.n_bytes, mean


def measure(protection, updates, exact, repeats):
    rounds = [one_round(protection, updates) for _ in range(repeats)]
    parts = np.median([milliseconds for milliseconds, _, _ in rounds], axis=0)
    encode, server, decode, signatures = parts.tolist()
    return {
        "encode": encode,
        "server": server,
        "decode": decode,
        "total": encode + server + decode,
        "(signatures)": signatures,
        "bytes": rounds[0][1] / updates[0].n_bytes,
        "max error": np.abs(rounds[0][2].state["w"] - exact).max(),
    }


def compare(n_parameters, n_sites, repeats):
    updates, key = make_updates(n_parameters, n_sites), si.privacy.Key.generate()
    exact = sum(u.state["w"].astype(np.float64) * u.weight for u in updates) / sum(u.weight for u in updates)
    plain = statistics.median(timed(FedAvg().reduce, updates)[0] for _ in range(repeats))
    error = np.abs(FedAvg().reduce(updates).state["w"] - exact).max()
    nothing = dict.fromkeys(["encode", "decode", "(signatures)"], 0.0)
    rows = {"plain mean": {"server": plain, "total": plain, "bytes": 1.0, "max error": error} | nothing}
    for name, make in protections(key):
        if not name.startswith("CKKS") or n_parameters <= MOST_FOR_CKKS:
            rows[name] = measure(make(), updates, exact, repeats if not name.startswith("CKKS") else 3)
    columns = list(rows[REFERENCE])
    table = pd.DataFrame.from_dict(rows, orient="index")[columns]
    table["time ×"] = table["total"] / table.loc[REFERENCE, "total"]
    table["bytes ×"] = table["bytes"] / table.loc[REFERENCE, "bytes"]
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    formats = {"bytes": "{:.2f}", "max error": "{:.1e}", "time ×": "{:.2f}", "bytes ×": "{:.2f}"}
    for n_parameters in options.parameters:
        table = compare(n_parameters, options.sites, options.repeats)
        print(f"\n{n_parameters:,} parameters, {options.sites} sites; × is over {REFERENCE}\n")
        print(table.to_string(formatters={name: formats.get(name, "{:.1f}").format for name in table}))
        for name in table.index[table.index.str.startswith("CKKS")]:
            keyed = table.loc[["KeyedSum, 64 bits", "KeyedSum, 32 bits"]]
            slower, larger = (table.loc[name, column] / keyed[column] for column in ("total", "bytes"))
            print(
                f"\n{name}, over a keyed sum of 64 / 32 bits: {slower.iloc[0]:.0f} / {slower.iloc[1]:.0f} times the "
                f"time, {larger.iloc[0]:.1f} / {larger.iloc[1]:.1f} times the bytes"
            )


if __name__ == "__main__":
    main()
