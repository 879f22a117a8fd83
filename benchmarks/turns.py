"""Processes that take one step whenever they are asked to, so that programs which cannot live in one process (each
brings its own threads and its own memory settings) can be timed in turn on the same machine.

A request is a line on the process's standard input, an answer a line of JSON on its standard output. Nothing here
imports Paddle or PyTorch.
"""
import json
import os
import queue
import subprocess
import sys
import threading
import time

from runtime.errors import UserError


class Worker:
    """A process of `script`, which calls serve(). work: what its function gets. `about` is what that told."""

    def __init__(self, python, script, work):
        self.script = os.path.basename(script)
        self.process = subprocess.Popen([python, script, json.dumps(work)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.about = self._answer()

    def step(self):
        """Take one step. Returns its seconds and the seconds of the processor, of all threads."""
        self.process.stdin.write('step\n')
        self.process.stdin.flush()
        return self._answer()

    def close(self):
        self.process.stdin.close()  # ends serve()
        self.process.wait()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f'{self.script} ended with status {self.process.wait()} before it answered', status=1)
        return json.loads(line)


def serve(prepare):
    """Be a worker. prepare: a function of the work that returns (about, a function that takes one step)."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(value):
        print(json.dumps(value), file=answers, flush=True)
    requests = queue.Queue()

    def listen():
        for line in sys.stdin:
            requests.put(line)
        os._exit(0)  # the benchmark has ended, or was stopped while this process still prepared
    threading.Thread(target=listen, daemon=True).start()
    about, step = prepare(json.loads(sys.argv[1]))
    answer(about)
    while requests.get():
        start, processor = time.perf_counter(), time.process_time()
        step()
        answer((time.perf_counter() - start, time.process_time() - processor))
