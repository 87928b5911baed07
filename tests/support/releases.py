"""The release before this one, as `make release` packed it, to run beside this one."""

import os
import tarfile
from pathlib import Path

from support.stores import ROOT

RELEASES = ROOT / "tests" / "releases"


def unpack(folder: Path) -> dict[str, str]:
    """Unpack it there. Returns the environment in which `-m deployment_pipeline` is that release."""
    [archive] = RELEASES.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return {"PYTHONPATH": os.pathsep.join([str(folder / "src"), str(folder / "generated")])}
