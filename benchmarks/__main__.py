"""numgpt against PyTorch and others, side by side:  python -m benchmarks [ROW ...]

The table gives medians, the ratio of the other side's time to numgpt's (above 1 numgpt is faster),
and each process's peak memory. With --against CHECKOUT the other side is the numgpt of another
checkout: 20 pairs of runs, this code and that one in turn, and the median of the pairs' ratios of
time (below 1 this code is faster). In place of rows:

    recipe    train the char recipe to its end on both sides
    growth    how time and memory grow with tokens and context; writes growth.json
    plot      growth.json as growth.svg and as tables
    flat      resident memory over 1000 training steps
    sizes     load and run GPT-2 of 124M to 1.5B parameters (6.3 GB of disk and memory)
    lora_memory
              what a LoRA takes beside the frozen SmolLM2-135M
    induction train two layers until heads copy what repeats, and take the heads out (minutes)
    desk      tune SmolLM2-135M on the facts of an invented shop, and ask before and after; --out
              DIR keeps data and models, --whole also tunes all parameters
    grpo      SmolLM2-135M learns two tasks of reasoning-gym by their rewards alone (half an hour);
              --out DIR keeps the runs
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import statistics
import sys
from pathlib import Path

from benchmarks import harness

STUDIES = ("recipe", "growth", "plot", "flat", "sizes", "lora_memory", "induction", "desk", "grpo")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "rows",
        nargs="*",
        help="rows of the table (default: all; '*' stands for any letters), or a study",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--kernels",
        metavar="NAME",
        help="'numpy': those that NumPy's BLAS takes by itself; else an OPENBLAS_CORETYPE",
    )
    parser.add_argument("--against", metavar="CHECKOUT", help="compare with numgpt there")
    parser.add_argument("--pairs", type=int, default=20, help="runs of each, with --against (20)")
    parser.add_argument(
        "--out", metavar="DIR", help="what desk or grpo makes, kept; of desk some may be there"
    )
    parser.add_argument("--whole", action="store_true", help="desk also tunes the whole model")
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
        takes = {"desk": ("out", "whole"), "grpo": ("out",)}.get(options.rows[0], ())
        if any(getattr(options, name) for name in ("out", "whole") if name not in takes):
            parser.error("--out goes with desk and grpo, --whole with desk")
        import numgpt  # noqa: F401  (first: it chooses NumPy's kernels)

        study = importlib.import_module(f"benchmarks.{options.rows[0]}")
        study.main(options.threads, **{name: getattr(options, name) for name in takes})
    elif options.against:
        compare(parser, options)
    else:
        table(parser, options)


def table(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    rows = chosen_rows(parser, options)
    environment = {"BENCHMARK_THREADS": str(options.threads)}
    if options.kernels == "numpy":
        # NumPy is imported first, and the rest of what numgpt sets stays equal.
        environment |= {"BENCHMARK_KERNELS": "numpy", "OPENBLAS_THREAD_TIMEOUT": "20"}
    elif options.kernels:
        environment["OPENBLAS_CORETYPE"] = options.kernels
    print("| work | numgpt | other | ratio | target | peak MB, numgpt | other |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    sides = tuple(harness.Side(name, environment) for name in ("numgpt", "other"))
    for name, row in rows.items():
        try:
            ours, theirs = harness.measure(name, row.runs, sides)
        except harness.MissingError as package:
            print(f"{name} is left out: pip install {package}", file=sys.stderr)
            continue
        peaks = f"{ours.peak:,.0f} | {theirs.peak:,.0f}" if row.memory else " | "
        print(
            f"| {row.title} | {show(row, ours.seconds)} | {show(row, theirs.seconds)}"
            f" | {theirs.seconds / ours.seconds:.2f} | {row.target or ''} | {peaks} |",
            flush=True,
        )


def compare(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """This code against that of another checkout."""
    checkout = Path(options.against).resolve()
    if not (checkout / "numgpt" / "__init__.py").is_file():
        parser.error(f"--against {options.against}: there is no numgpt/ in it")
    environment = {"BENCHMARK_THREADS": str(options.threads)}
    sides = (
        harness.Side("numgpt", environment),
        harness.Side("numgpt", environment | {"BENCHMARK_CHECKOUT": str(checkout)}),
    )
    print("| work | this code | that | ratio of times | quartiles | peak MB, this code | that |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, row in chosen_rows(parser, options).items():
        ours, theirs = harness.measure(name, options.pairs, sides)
        ratios = sorted(a / b for a, b in zip(ours.times, theirs.times, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        title = row.title.partition(" (")[0]
        print(
            f"| {title} | {show(row, ours.seconds)} | {show(row, theirs.seconds)} | {middle:.3f}"
            f" | {low:.3f}–{high:.3f} | {ours.peak:,.0f} | {theirs.peak:,.0f} |",
            flush=True,
        )


def chosen_rows(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict:
    from benchmarks.rows import ROWS

    rows = {}
    for pattern in options.rows or "*":
        if not (names := fnmatch.filter(ROWS, pattern)):
            parser.error(f"no row {pattern}; there are {', '.join((*ROWS, *STUDIES))}")
        rows |= {name: ROWS[name] for name in names}
    return rows


def show(row, seconds: float) -> str:
    if row.unit != "s":
        return f"{row.amount / seconds:.1f} {row.unit}"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


if __name__ == "__main__":
    main()
