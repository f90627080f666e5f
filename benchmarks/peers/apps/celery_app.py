"""Celery on a Redis server of its own, one prefork worker process."""

import os
import subprocess
import sys
import tempfile
import time

import celery

VALUE = {"a": 1, "text": "x" * 80}
url = f"redis://127.0.0.1:{os.environ['PEER_PORT']}/0"
app = celery.Celery("celery_app", broker=url, backend=url)
app.conf.update(task_serializer="json", worker_prefetch_multiplier=64, broker_connection_retry_on_startup=True)


@app.task(name="echo")
def echo(x):
    return x


def main():
    from measured_calls import report

    with tempfile.TemporaryDirectory() as folder:
        redis = subprocess.Popen(
            ["redis-server", "--port", os.environ["PEER_PORT"], "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "celery_app", "worker", "-c", "1", "-l", "ERROR"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            begin = time.perf_counter()
            echo.delay(VALUE).get(timeout=60, interval=0.001)
            print(f'{{"start_s": {time.perf_counter() - begin}}}')
            report(
                lambda: echo.delay(VALUE).get(timeout=60, interval=0.001),
                lambda: echo.delay(VALUE),
                lambda pending: pending.get(timeout=60, interval=0.001),
            )
        finally:
            worker.terminate()
            worker.wait()
            redis.terminate()
            redis.wait()


if __name__ == "__main__":
    main()
