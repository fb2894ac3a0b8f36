"""Memory: what this process frees, it keeps for what it allocates next."""

import ctypes

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # as <malloc.h> numbers them; see mallopt(3)
LARGEST = 32 * 2**20  # bytes, the most that glibc allows: larger blocks are mapped anew each time


def keep_freed_memory() -> None:
    """For a program's own process: glibc returns the free end of its heap to the system, and gets it back page by page.

    An update on a CPU frees all its activations and gradients, so it could spend up to 5,000 page faults, 7 of 150 ms
    with a ResNet-18, on the same memory again; in some runs, and not in others. Other allocators are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGEST)  # where glibc's own adjustment ends up, which setting the other one ends
        mallopt(TRIM_THRESHOLD, -1)  # never
