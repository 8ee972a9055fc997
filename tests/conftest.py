"""Hypothesis profiles: `ci` draws the same examples every time, `long` draws ten thousand new ones."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile("ci", derandomize=True, database=None, deadline=None, max_examples=50)
settings.register_profile(
    "long",
    deadline=None,
    max_examples=10_000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("ci")

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread a worker, in the processes that tests start too: threads that wait for each other spin, and two busy
    # processes of two threads each on two cores are many times slower.
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch  # in workers only: the process that hands out the tests would import it for nothing, before them

    torch.set_num_threads(1)
