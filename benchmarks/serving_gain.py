"""What agents gain: replayed sessions on two real vLLM engines on the CPU, stock vLLM against ours, KV oversubscribed.

    python benchmarks/serving_gain.py [--smoke | --plan | --report] [--out DIR] [--markdown docs/serving-gain.md]

What is run and how to read it: `docs/serving-gain.md`. Needs vLLM (extra serve-cpu), the real traces (--data), two
quiet cores, 16 GiB of free memory and about an hour. It can be stopped at any time; the same command goes on.
"""

if __name__ == "__main__":
    from gain_kit.command import main

    main()
