"""SIGKILL at fifty random moments: the store in the end equals that of an undisturbed sweep."""

import multiprocessing
import os
import random
import signal

from tests.experiments.conftest import contents

from excise.cli import main

KILLS = 50


def test_a_sweep_killed_fifty_times_loses_nothing(grid_file, tmp_path):
    # A fresh process each time, forked from one that has imported everything: kills then hit the
    # work, not the imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["excise.cli", "excise.commands.sweep", "sklearn.datasets"])

    def start(store):
        arguments = ["sweep", str(grid_file), "--store", str(store), "--engine", "inline"]
        process = context.Process(target=_sweep, args=(arguments,))
        process.start()
        return process

    undisturbed = start(tmp_path / "undisturbed")
    undisturbed.join()
    expected = contents(tmp_path / "undisturbed")
    assert len([name for name in expected if name.startswith("records")]) == 4

    draw = random.Random(0)
    kills, number, finished = 0, 0, 0
    longest = 0.5
    while kills < KILLS or finished == number:
        store = tmp_path / f"killed-{number}"
        process = start(store)
        process.join(draw.uniform(0, longest))
        if process.is_alive() and kills < KILLS + 20:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            # A slow machine gets more time in each life, or it would never finish.
            longest *= 1.02
            continue
        process.join()
        assert process.exitcode == 0
        assert contents(store) == expected
        number, finished = number + 1, finished + 1
        if kills >= KILLS:
            break
    assert kills >= KILLS
    assert finished >= 1


def _sweep(arguments):
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    raise SystemExit(main(arguments))
