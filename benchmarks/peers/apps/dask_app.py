"""Dask's distributed scheduler with one worker process."""

import itertools
import time

from distributed import Client, LocalCluster

VALUE = {"a": 1, "text": "x" * 80}


def echo(x, number):
    return x


def main():
    from measured_calls import report

    numbers = itertools.count()  # dask remembers the value of equal calls
    begin = time.perf_counter()
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.submit(echo, VALUE, next(numbers)).result()
        print(f'{{"start_s": {time.perf_counter() - begin}}}', flush=True)
        report(
            lambda: client.submit(echo, VALUE, next(numbers)).result(),
            lambda: client.submit(echo, VALUE, next(numbers)),
            lambda pending: pending.result(),
        )


if __name__ == "__main__":
    main()
