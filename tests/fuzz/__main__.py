"""`python -m tests.fuzz [READER ...] --examples 10000`: fuzz readers, print figures. Ends with 1 if one misbehaved, had much
fewer inputs than were asked for, or refused all or none of them.
"""

from __future__ import annotations

import argparse
import logging
import sys
import traceback

SOME = 50  # inputs, of which some are good and some are not
ENOUGH = 0.9  # of the inputs asked for; Hypothesis may run out of them


def main() -> int:
    from tests.fuzz.harness import fuzz, scene
    from tests.fuzz.readers import READERS, warm_up

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"from: {', '.join(READERS)} (default: all)")
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.readers) - set(READERS):
        parser.error(f"no such reader: {', '.join(sorted(unknown))}")
    bad = []
    warm_up()
    logging.disable()  # thousands of warnings, each of them right
    with scene() as (world, watch):
        print(f"{'reader':<20} {'inputs':>8} {'refused':>8} {'seconds':>8} {'MiB most':>9}", flush=True)
        for name in options.readers or READERS:
            base = world / name
            base.mkdir()
            try:
                f = fuzz(READERS[name], options.examples, options.seed, watch, base)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                bad.append(name)
                told = "".join(traceback.format_exception(error))  # an input may be a megabyte
                print(f"{name:<20} MISBEHAVED\n{told[:8000]}\n{told[8000:][-1000:]}", flush=True)
            else:
                print(f"{name:<20} {f.inputs:>8,} {f.refused:>8,} {f.seconds:>8.1f} {f.most_mib:>9.0f}", flush=True)
                if f.inputs < ENOUGH * options.examples:
                    bad.append(name)
                    print(f"{name:<20} TOO FEW INPUTS: there are no more than {f.inputs:,}", flush=True)
                elif options.examples >= SOME and not 0 < f.refused < f.inputs:
                    bad.append(name)
                    print(f"{name:<20} SAYS NOTHING: its inputs must be good and bad ones", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
