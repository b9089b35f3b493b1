import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest

from mlites.errors import InputError
from mlites.hardware.fresh_process import PROGRAM, FreshProcess
from mlites.hardware.infer_only import main
from mlites.hardware.memory import STARTS, measure_process
from mlites.recipe import Hardware
from tests.hardware.networks import FEATURES, make_model, make_weights

Save = Callable[..., Path]
ROWS = np.ones((3, FEATURES), np.float32)


def _job(path: Path) -> str:
    providers = [["CPUExecutionProvider", {}]]
    return json.dumps({"model": str(path), "threads": 1, "providers": providers, "shape": ROWS.shape})


def test_peak_memory_agrees_with_what_the_kernel_tells_an_independent_process(save: Save):
    path = save(make_model(make_weights((1024, 1024, 1024))))
    code = (
        "import sys, numpy, onnxruntime;"
        "s = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider']);"
        f"[s.run(None, {{'input': numpy.ones((8, {FEATURES}), 'f4')}}) for _ in range(10)];"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=-1, stdout=-1) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.communicate()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    assert measure_process(path, ROWS, Hardware(batch=8)).peak_memory_bytes == pytest.approx(peak, rel=0.05)


def test_a_large_caller_does_not_count(save: Save):
    path = save(make_model(make_weights()))
    before = measure_process(path, ROWS, Hardware(batch=1)).peak_memory_bytes
    ballast = np.ones(400 << 20, np.uint8)
    assert psutil.Process().memory_info().rss > ballast.nbytes
    assert measure_process(path, ROWS, Hardware(batch=1)).peak_memory_bytes == pytest.approx(before, rel=0.05)


def test_a_larger_model_needs_more_by_at_least_its_weights(save: Save):
    small = save(make_model(make_weights((8,))), "small.onnx")
    large = save(make_model(make_weights((3000, 3000))), "large.onnx")
    more = (
        measure_process(large, ROWS, Hardware(batch=1)).peak_memory_bytes
        - measure_process(small, ROWS, Hardware(batch=1)).peak_memory_bytes
    )
    assert more > 0.9 * 4 * 3000 * 3000


def test_the_program_imports_neither_torch_nor_onnx(save: Save):
    path = save(make_model(make_weights()))
    code = (
        f"import runpy, sys; sys.argv = ['p', {_job(path)!r}];"
        f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__');"
        "assert not {'torch', 'onnx', 'mlites', 'subprocess', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], input=ROWS.tobytes(), capture_output=True, check=True)


def test_a_model_that_cannot_run_gives_one_line(save: Save):
    path = save(make_model(make_weights(), features=5))
    with pytest.raises(InputError, match=r"model\.onnx: ONNX Runtime cannot use it: .*MatMul") as caught:
        measure_process(path, ROWS, Hardware())
    assert "\n" not in str(caught.value)


def test_a_model_that_kills_its_process_leaves_the_caller_alive(save: Save, monkeypatch: pytest.MonkeyPatch):
    crashing = save(b"import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashing.py")
    monkeypatch.setattr("mlites.hardware.fresh_process.PROGRAM", crashing)
    with pytest.raises(InputError, match=r"model\.onnx: ONNX Runtime dies of SIGSEGV on this file"):
        measure_process(save(make_model(make_weights())), ROWS, Hardware())


def test_a_model_that_never_ends_is_given_up(save: Save, monkeypatch: pytest.MonkeyPatch):
    endless = save(b"import sys, time\nwhile True: time.sleep(9)", "endless.py")
    monkeypatch.setattr("mlites.hardware.fresh_process.PROGRAM", endless)
    monkeypatch.setattr("mlites.hardware.fresh_process.LONGEST_SECONDS", 0.2)
    with pytest.raises(InputError, match=r"take more than 0\.2 s; this model is too slow"):
        measure_process(save(make_model(make_weights())), ROWS, Hardware())


def test_what_gnu_time_reports_is_the_same_peak(save: Save):
    path = save(make_model(make_weights((1024, 1024))))
    command = [sys.executable, "-P", str(PROGRAM), _job(path)]
    # what /usr/bin/time -v does: a small process starts the program and asks wait4 for its largest resident set
    code = (
        f"import os; c = {command!r}; quiet = [(os.POSIX_SPAWN_DUP2, 2, 1)];"
        "pid = os.posix_spawn(c[0], c, os.environ, file_actions=quiet);"
        "print(os.wait4(pid, 0)[2].ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], input=ROWS.tobytes(), capture_output=True, check=True)
    assert measure_process(path, ROWS, Hardware(batch=3)).peak_memory_bytes == pytest.approx(
        int(done.stdout) * 1024, rel=0.05
    )


def test_the_program_reports_its_own_peak(
    save: Save, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = save(make_model(make_weights()))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(ROWS.tobytes())))
    main(json.loads(_job(path)))
    found = json.loads(capsys.readouterr().out)
    assert found["now"] >= psutil.Process().memory_info().rss * 0.98
    assert found["usage"] >= found["now"] * 0.98


def test_the_cold_start_is_part_of_what_the_process_took(save: Save):
    begin = time.perf_counter()
    found = measure_process(save(make_model(make_weights((512, 512)))), ROWS, Hardware())
    seconds = time.perf_counter() - begin
    assert found.first_inference_ms > 0 and found.load_ms > 0
    assert found.load_ms + found.first_inference_ms < 1e3 * seconds / STARTS * 1.5
    assert found.to_json()["cold_start_ms"] == {"load": found.load_ms, "first": found.first_inference_ms}


def test_the_process_keeps_to_the_profiles_cores(save: Save, monkeypatch: pytest.MonkeyPatch):
    telling = save(b"import json, os; print(json.dumps(len(os.sched_getaffinity(0))))", "telling.py")
    monkeypatch.setattr("mlites.hardware.fresh_process.PROGRAM", telling)
    process = FreshProcess(telling, ROWS, Hardware(cores=1), threads=1, batch=1)
    with closing(process):
        assert process.result() == 1
