import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ptbxl_datasets() -> Path:
    """Folder of real data sets beside the checkout, or where HEARTSWEEP_DATASETS says; nothing of it is committed."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "datasets"
    folder = Path(os.environ.get("HEARTSWEEP_DATASETS") or beside)
    if not (folder / "ptbxl_100hz").is_dir():
        pytest.skip(f"no PTB-XL at {folder}: set HEARTSWEEP_DATASETS to the folder that holds ptbxl_100hz")
    return folder
