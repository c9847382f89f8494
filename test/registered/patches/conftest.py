import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "releases"))

from fake_package import make_package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make_package(tmp_path / "site-packages" / "sglang")
