"""Python programs in processes of their own, each forked from one that has imported torch already.

Importing torch and transformers takes four seconds of CPU, and a test of several ranks starts several
processes. `ForkedPython` starts them from a server that has imported those libraries and done nothing else:
no thread runs in it, and this package is imported by each program anew. What a library reads from the
environment when it is imported a server must be told (READ_AT_IMPORT).
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
READ_AT_IMPORT = {  # and by which library; a server for each combination of values
    "TRITON_INTERPRET": "0",  # Triton, which torch imports
    "HF_HOME": None, "HF_ENDPOINT": None, "HF_HUB_OFFLINE": None,  # huggingface_hub
}  # fmt: skip
WARM = (
    "torch", "scipy.optimize", "omegaconf", "torch.utils.tensorboard",
    "transformers.models.dinov3_vit.modeling_dinov3_vit", "transformers.models.dinov2.modeling_dinov2",
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers",
)  # fmt: skip
WARM_FOR_KERNELS = ("torch", "scipy.optimize", "torch._dynamo")  # interpreted, and no whole model around them

# Reads requests from descriptor 0: JSON beside two pipes to write to and one for the process id and the end.
# The loop is left in the forked child only; it then becomes the program, as `python -m` and `-c` run it.
SERVER = """
import atexit, gc, importlib, json, os, runpy, select, signal, socket, sys, threading, types
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as in a terminal, also where nohup has started the tests
for name in sys.argv[1:]:
    importlib.import_module(name)
gc.collect()
gc.freeze()  # a look for garbage in a fork would copy all that was imported
control, living = socket.socket(fileno=0), {}
while True:
    ready = select.select([control, *living], [], [])[0]
    for ended in set(ready) & living.keys():
        pid, tell = living.pop(ended)
        os.write(tell, b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os.close(tell)
        os.close(ended)
    if control in ready:
        request, pipes, _, _ = socket.recv_fds(control, 1 << 20, 3)
        if not request:
            os._exit(0)
        pid = os.fork()
        if not pid:
            break
        os.write(pipes[2], b"%d\\n" % pid)
        living[os.pidfd_open(pid)] = pid, pipes[2]
        os.close(pipes[0])
        os.close(pipes[1])
wanted = json.loads(request)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(pipes[0], 1)
os.dup2(pipes[1], 2)
for number in {*pipes, *living, *(tell for _, tell in living.values()), control.detach()} - {0, 1, 2}:
    os.close(number)
os.environ.clear()
os.environ.update(wanted["env"])
os.chdir(wanted["cwd"])
kind, program, *words = wanted["words"]
sys.argv = [kind if kind == "-c" else program, *words]
given = [place for place in wanted["env"].get("PYTHONPATH", "").split(os.pathsep) if place]
sys.path[:1] = ["" if kind == "-c" else wanted["cwd"], *given]
status = 0
try:
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), sys.modules["__main__"].__dict__)
except SystemExit as end:
    status = end.code if isinstance(end.code, int) else int(end.code is not None)
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
except BaseException:
    sys.excepthook(*sys.exc_info())
    status = 1
# What the interpreter does at its end, but for taking its modules apart: in a fork that copies their memory.
threading._shutdown()
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""


class ForkedPython:
    """`python -m MODULE ...` or `python -c CODE ...`, as subprocess.Popen with text in pipes."""

    def __init__(self, words: list[str], *, env: dict[str, str], cwd: Path = ROOT) -> None:
        request = json.dumps({"words": words, "env": env, "cwd": str(cwd)}).encode()
        pipes = [os.pipe() for _ in range(3)]
        socket.send_fds(_server(env), [request], [write for _, write in pipes])
        for _, write in pipes:
            os.close(write)
        self.stdout, self.stderr, self._told = (os.fdopen(read, encoding="utf-8") for read, _ in pipes)
        self.pid = int(self._told.readline())
        self._returncode: int | None = None

    @property
    def returncode(self) -> int | None:
        """The exit status once somebody waited for it; the negative number of the signal that ended it."""
        return self._returncode

    def wait(self) -> int:
        """Until the process ends."""
        if self._returncode is None:
            self._returncode = int(self._told.readline())
        return self._returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What stands in both pipes, read to the end of the process; TimeoutError after `timeout` seconds."""
        readers = ThreadPoolExecutor(2)
        try:
            both = [readers.submit(pipe.read) for pipe in (self.stdout, self.stderr)]
            out, err = (reading.result(timeout) for reading in both)
        except TimeoutError:
            self.kill()
            raise
        finally:
            readers.shutdown()
        self.wait()
        self._close()
        return out, err

    def send_signal(self, number: int) -> None:
        """To a process that nobody has waited for yet."""
        if self._returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """By SIGKILL; nothing happens where it has ended."""
        try:
            self.send_signal(signal.SIGKILL)
        except ProcessLookupError:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.wait()
        self._close()

    def _close(self) -> None:
        for pipe in (self.stdout, self.stderr, self._told):
            pipe.close()


def run(words: list[str], *, env: dict[str, str], cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """As subprocess.run with captured text."""
    with ForkedPython(words, env=env, cwd=cwd) as process:
        out, err = process.communicate(900)
    return subprocess.CompletedProcess(words, process.wait(), out, err)


_servers: dict[tuple[int | str | None, ...], socket.socket] = {}  # of this process, not of one that forked it


def _server(env: dict[str, str]) -> socket.socket:
    told = {name: env.get(name, default) for name, default in READ_AT_IMPORT.items()}
    key = os.getpid(), *told.values()
    if key not in _servers:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        warm = WARM_FOR_KERNELS if told["TRITON_INTERPRET"] == "1" else WARM
        around: dict[str, str | None] = {**os.environ, "OMP_NUM_THREADS": "1", **told}
        with theirs:
            server = subprocess.Popen(
                [sys.executable, "-c", SERVER, *warm], cwd=ROOT, stdin=theirs, stdout=subprocess.DEVNULL,
                env={name: value for name, value in around.items() if value is not None},
            )  # fmt: skip
        _servers[key] = ours
        atexit.register(_end, server, ours)
    return _servers[key]


def _end(server: "subprocess.Popen[bytes]", control: socket.socket) -> None:
    control.close()
    server.wait()
