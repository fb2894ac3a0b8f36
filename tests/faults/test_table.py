"""The table of `make test-faults`: each fault with its outcome, wherever its tests are."""

import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_fault_has_a_test() -> None:
    texts = [path.read_text() for path in TESTS.rglob("test_*.py")]
    numbers = {int(number) for text in texts for number in re.findall(r'mark\.fault\("F(\d+)"', text)}
    assert numbers == set(range(1, 25))


def test_the_table_counts_the_outcomes_of_each_fault(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/test_it.py").write_text(
        "import pytest\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError\n"
        "@pytest.mark.fault('F10', 'the arm is stuck')\n"
        "@pytest.mark.parametrize('angle', [0, 1, 2])\n"
        "def test_arm(angle): assert angle\n"
        "@pytest.mark.fault('F9', 'the table is gone')\n"
        "def test_table(broken): ...\n"
        "def test_no_fault(): ...\n"
    )
    command = [sys.executable, *"-m pytest -m fault --fault-table --rootdir . .".split()]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    rows = told.partition("fault -> outcome")[2].splitlines()[1:3]
    assert [row.split(maxsplit=1)[0] for row in rows] == ["F9", "F10"]
    assert rows[0].endswith("1 error") and "the table is gone" in rows[0]
    assert rows[1].endswith("2 passed, 1 failed") and "the arm is stuck" in rows[1]
    assert "1 deselected" in told
