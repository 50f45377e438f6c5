"""The fork server, without PyTorch: what a task has of its own, how it ends, and what is left when a process is killed.

Every test runs a script of its own, because `serve` forks the process that calls it. Tasks are lines of Python.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.local import fork_server

SCRIPT = """
import json, os, signal, sys, threading, time
from pipelines.local import fork_server

def ask(code, **environment):
    lines = []
    status = client.run({{"code": code, "environment": {{**os.environ, **environment}}}}, lines.append)
    return status, "".join(lines)

def task(request):
    exec(request["code"], {{"__name__": "__main__"}})

def work(given):
    global client
    client = given
{work}
    return 0

def preload():
{preload}

fork_server.leave(fork_server.serve(work, task, before=[preload], meanwhile=[preload]))
"""


def script(work: str, preload: str = "pass") -> list[str]:
    def indented(text: str) -> str:
        return "\n".join("    " + line for line in text.strip().splitlines())

    return [sys.executable, "-c", SCRIPT.format(work=indented(work), preload=indented(preload))]


def ran(work: str, preload: str = "pass") -> str:
    done = subprocess.run(script(work, preload), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def started(work: str) -> tuple[subprocess.Popen[str], dict[str, int]]:
    """A script in a session of its own that has begun a task; the pids of parent, worker and task."""
    process = subprocess.Popen(
        script(work), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    pids = {"parent": process.pid}
    for name in ("worker", "task"):
        said, pid = process.stdout.readline().split()
        assert said == name
        pids[name] = int(pid)
    return process, pids


def gone(pid: int) -> bool:
    """Within ten seconds; a zombie, whose parent is not there to ask, has ended too."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


SLEEPS = """
print("worker", os.getpid(), flush=True)
code = "import os, time; print('task', os.getpid(), flush=True); time.sleep(60)"
print(client.run({"code": code, "environment": dict(os.environ)}, lambda line: print(line, end="", flush=True)), flush=True)
"""


class TestTask:
    def test_shows_its_output_and_gives_its_status(self) -> None:
        said = ran("""
assert ask("print('out'); import sys; print('err', file=sys.stderr)") == (0, "out\\nerr\\n")
assert ask("import sys; sys.exit(3)") == (3, "")
assert ask("import sys; sys.exit('in words')") == (1, "in words\\n")
status, output = ask("1 / 0")
assert status == 1 and "ZeroDivisionError" in output and "Traceback" in output
assert ask("import os, signal; os.kill(os.getpid(), signal.SIGKILL)") == (-9, "")
assert ask("import os; os.system('echo from a child')") == (0, "from a child\\n")
assert ask("import atexit; atexit.register(print, 'at exit')") == (0, "at exit\\n")
assert ask("print('still here')") == (0, "still here\\n")
print("done")
""")
        assert said == "done\n", "a task's output goes to who asked for it, and to nobody else"

    def test_has_the_environment_it_is_given_and_no_other(self) -> None:
        ran(
            """
assert ask("import os; print(os.environ['MINE'], os.system('test $MINE = 1'))", MINE="1") == (0, "1 0\\n")
assert ask("import os; print('MINE' in os.environ, 'PARENTS' in os.environ)") == (0, "False False\\n")
""",
            preload="os.environ['PARENTS'] = '1'",
        )

    def test_is_a_fresh_process(self) -> None:
        ran("""
signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # of the worker alone
facts = "import os, signal; print(os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0), len(os.listdir('/proc/self/task')))"
(_, first), (_, second) = ask(facts), ask(facts)
first, second = first.split(), second.split()
assert first[0] != second[0] and first[1:] == second[1:]
assert first[1] == str(os.getppid()) and first[2:4] == [str(os.getpgid(0)), str(os.getsid(0))] and first[4] == "1"
signals = "import signal as s; print(*(s.getsignal(n) == s.SIG_DFL for n in (s.SIGTERM, s.SIGUSR1)), "
signals += "s.getsignal(s.SIGINT), s.pthread_sigmask(s.SIG_BLOCK, []))"
assert ask(signals) == (0, f"True True {signal.getsignal(signal.SIGINT)} set()\\n"), ask(signals)
""")

    @pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
    def test_ignores_what_its_parent_was_started_to_ignore(self, number: int) -> None:
        before = signal.signal(number, signal.SIG_IGN)
        try:
            ran(f"""
import signal
assert signal.getsignal({int(number)}) == signal.SIG_IGN
assert ask("import signal; print(signal.getsignal({int(number)}) == signal.SIG_IGN)") == (0, "True\\n")
""")
        finally:
            signal.signal(number, before)

    def test_draws_its_own_random_numbers(self) -> None:
        ran(
            """
draw = "import random, tempfile, numpy; print(random.random(), numpy.random.random(), next(tempfile._get_candidate_names()))"
(_, first), (_, second) = ask(draw), ask(draw)
assert not set(first.split()) & set(second.split())
""",
            preload="import random, tempfile, numpy; next(tempfile._get_candidate_names())",
        )

    def test_reads_a_module_as_it_is_now(self, tmp_path: Path) -> None:
        ran(f"""
from pathlib import Path
module = Path({str(tmp_path)!r}) / "edited.py"
for value in ("1", "23"):
    module.write_text("value = " + value)
    assert ask("import sys; sys.path.insert(0, {str(tmp_path)!r}); import edited; print(edited.value)") == (0, value + "\\n")
""")

    def test_can_be_asked_for_at_length_and_several_at_once(self) -> None:
        ran("""
from concurrent.futures import ThreadPoolExecutor
code = "import time; time.sleep(0.3); print(len('" + "x" * 3_000_000 + "'))"
with ThreadPoolExecutor(3) as pool:
    assert list(pool.map(ask, [code] * 3)) == [(0, "3000000\\n")] * 3
assert not client.busy
""")


class TestRefusal:
    def test_a_parent_with_threads_does_not_fork_and_says_so(self) -> None:
        said = ran(
            """
try:
    ask("print('forked all the same')")
except fork_server.RefusedError as error:
    print(error)
""",
            preload="threading.Thread(target=time.sleep, args=(3,), daemon=True).start()",
        )
        assert re.match(r"there are [23] threads in the process that starts tasks: ", said), said  # NumPy's may be back

    def test_a_parent_that_uses_cuda_does_not_fork(self) -> None:
        said = ran(
            """
try:
    ask("print('forked all the same')")
except fork_server.RefusedError as error:
    print(error)
""",
            preload="""
from unittest.mock import Mock
sys.modules['torch'] = Mock(**{'cuda.is_initialized.return_value': True})
""",
        )
        assert said == "CUDA is in use in the process that starts tasks\n"

    def test_a_process_with_threads_does_not_become_a_parent(self) -> None:
        import threading

        ended = threading.Event()
        thread = threading.Thread(target=ended.wait)
        thread.start()
        try:
            with pytest.raises(fork_server.RefusedError, match="threads"):
                fork_server.serve(lambda client: 0, lambda request: None)
        finally:
            ended.set()
            thread.join()

    def test_threads_of_blas_are_ended_first(self) -> None:
        ran("assert ask('import numpy; a = numpy.ones((300, 300)); print((a @ a).sum())')[0] == 0", preload="import numpy")


class TestEnds:
    def test_a_task_clears_up_what_is_its_own_alone(self) -> None:
        clear_up = "import os, weakref; weakref.finalize(os, print, '{who} clears up', flush=True)"
        said = ran(f"print(*ask({clear_up.format(who='task')!r}))", preload=clear_up.format(who="parent"))
        first, _, *rest = said.splitlines()
        assert first == "0 task clears up"
        assert set(rest) == {"parent clears up"}

    def test_the_worker_s_status_is_the_parent_s(self) -> None:
        assert subprocess.run(script("return 7"), check=False).returncode == 7
        killed = subprocess.run(script("os.kill(os.getpid(), signal.SIGKILL)"), check=False)
        assert killed.returncode == 128 + signal.SIGKILL

    def test_a_signal_to_the_group_lets_the_task_finish(self) -> None:
        process, pids = started("""
signal.signal(signal.SIGTERM, lambda number, frame: None)
print("worker", os.getpid(), flush=True)
code = "import os, signal, sys, time; "
code += "signal.signal(signal.SIGTERM, lambda number, frame: (time.sleep(0.5), print('resume point'), sys.exit(143))); "
code += "print('task', os.getpid(), flush=True); time.sleep(60)"
status = client.run({"code": code, "environment": dict(os.environ)}, lambda line: print(line, end="", flush=True))
print("status", status)
return 5
""")
        os.killpg(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
        assert said == "resume point\nstatus 143\n"
        assert process.returncode == 5
        assert gone(pids["task"])

    def test_a_task_killed_is_a_task_failed(self) -> None:
        process, pids = started(SLEEPS)
        os.kill(pids["task"], signal.SIGKILL)
        said, _ = process.communicate(timeout=30)
        assert said == "-9\n"
        assert process.returncode == 0

    @pytest.mark.parametrize("victim", ["parent", "worker"])
    def test_nothing_outlives_a_parent_or_a_worker_that_is_killed(self, victim: str) -> None:
        process, pids = started(SLEEPS)
        os.kill(pids[victim], signal.SIGKILL)
        said, _ = process.communicate(timeout=30)
        assert all(gone(pid) for pid in pids.values())
        if victim == "parent":
            assert (
                "the process that starts tasks has gone" in said or not said
            )  # or the worker was ended before it could say so
        else:
            assert process.returncode == 128 + signal.SIGKILL
