"""numgpt against PyTorch and others, side by side:  python -m benchmarks [ROW ...]

The table gives medians, the ratio of the other side's time to numgpt's (above 1 numgpt is faster),
and each process's peak memory. In place of rows:

    recipe    train the char recipe to its end on both sides
    growth    how time and memory grow with tokens and context; writes growth.json
    plot      growth.json as growth.svg and as tables
    flat      resident memory over 1000 training steps
    sizes     load and run GPT-2 of 124M to 1.5B parameters (6.3 GB of disk and memory)
"""

from __future__ import annotations

import argparse
import importlib

from benchmarks import harness

STUDIES = ("recipe", "growth", "plot", "flat", "sizes")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", help="rows of the table (default: all), or a study")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--kernels",
        metavar="NAME",
        help="'numpy': those that NumPy's BLAS takes by itself; else an OPENBLAS_CORETYPE",
    )
    parser.add_argument("--worker", nargs=2, metavar=("SIDE", "ROW"), help=argparse.SUPPRESS)
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        harness.serve(*options.worker)
    elif options.point:
        from benchmarks.growth import serve_point

        serve_point(*options.point)
    elif options.rows and options.rows[0] in STUDIES:
        if options.kernels or len(options.rows) > 1:
            parser.error(f"{options.rows[0]} stands alone, and takes no --kernels")
        import numgpt  # noqa: F401  (first: it chooses NumPy's kernels)

        importlib.import_module(f"benchmarks.{options.rows[0]}").main(options.threads)
    else:
        table(parser, options)


def table(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    from benchmarks.rows import ROWS

    if unknown := set(options.rows) - ROWS.keys():
        parser.error(f"no row {min(unknown)}; there are {', '.join((*ROWS, *STUDIES))}")
    environment = {"BENCHMARK_THREADS": str(options.threads)}
    if options.kernels == "numpy":
        # NumPy is imported first, and the rest of what numgpt sets stays equal.
        environment |= {"BENCHMARK_KERNELS": "numpy", "OPENBLAS_THREAD_TIMEOUT": "20"}
    elif options.kernels:
        environment["OPENBLAS_CORETYPE"] = options.kernels
    print("| work | numgpt | other | ratio | target | peak MB, numgpt | other |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.rows or ROWS:
        row = ROWS[name]
        results = harness.measure(name, row.runs, environment)
        (ours, our_peak), (theirs, their_peak) = results["numgpt"], results["other"]
        peaks = f"{our_peak:,.0f} | {their_peak:,.0f}" if row.memory else " | "
        print(
            f"| {row.title} | {show(row, ours)} | {show(row, theirs)} | {theirs / ours:.2f}"
            f" | {row.target or ''} | {peaks} |",
            flush=True,
        )


def show(row, seconds: float) -> str:
    if row.unit != "s":
        return f"{row.amount / seconds:.1f} {row.unit}"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


if __name__ == "__main__":
    main()
