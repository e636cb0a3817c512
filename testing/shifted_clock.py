"""Shifts the wall clock of single processes; the machine's own clock stays as it is.

A library of a few lines of C stands before libc's functions (LD_PRELOAD), and adds what a file says to their
answers. So a test steps the clock of a process while it runs, and no other process notices. Known limitation:
a wait until a moment of the wall clock, as `pthread_cond_timedwait` does by default, is not shifted.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

_FILE = "SHIFTED_CLOCK_FILE"
_SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile double *offset;

__attribute__((constructor)) static void find_offset(void) {
    const char *path = getenv("%(variable)s");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) offset = page;
    if (file >= 0) close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        double whole = floor(*offset);
        now->tv_sec += (time_t)whole;
        now->tv_nsec += (long)((*offset - whole) * 1e9);
        if (now->tv_nsec >= 1000000000) { now->tv_nsec -= 1000000000; now->tv_sec++; }
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
"""


class NoCompiler(RuntimeError):
    """There is no C compiler on this machine."""


class ShiftedClock:
    """The clock of the processes that are started with `environment`. folder: exists, and is its own.

    Raises NoCompiler.
    """

    def __init__(self, folder: Path, *, seconds: float = 0.0) -> None:
        self._file = folder / "offset"
        self._library = folder / "shifted_clock.so"
        self.step(seconds)
        _compile(self._library)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a process needs when it starts."""
        return {"LD_PRELOAD": str(self._library), _FILE: str(self._file)}

    def step(self, seconds: float) -> None:
        """From now on the clock is so far ahead of the machine's; negative: behind. Takes effect at once."""
        with self._file.open("r+b" if self._file.exists() else "xb") as file:
            file.write(struct.pack("d", seconds))


def _compile(library: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompiler("needs a C compiler: neither cc nor gcc is on PATH")
    source = _SOURCE.replace("%(variable)s", _FILE)
    command = [compiler, "-shared", "-fPIC", "-O2", "-x", "c", "-", "-o", str(library), "-lm"]
    subprocess.run(command, input=source, text=True, check=True, capture_output=True)
