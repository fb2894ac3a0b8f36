"""What every run of these tests is forked from: all is imported, and one run was made, so that nothing is slow at first.

The picture of the losses is not drawn: it takes longer than the runs.
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path

import torch

from trainer import watch

os.environ["CUDA_VISIBLE_DEVICES"] = ""
torch.set_num_threads(1)
watch.draw_curves = lambda *given, **named: None

with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
    import injections
    from fault_project import Project

    Project(Path(folder)).run()

assert injections
