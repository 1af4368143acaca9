"""The studio in a process of its own, for tests in a browser."""

import os
import subprocess
import sys
import time

from tests.ports import find_free_port
from tfmammo.apps.studio.config import StudioConfig
from tfmammo.config import dump


class Server:
    """The studio with some sections of its config; one folder has all of its temporary files."""

    def __init__(self, folder, sections, **settings):
        self.port = find_free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.temporary = folder / "temporary"
        self.temporary.mkdir(parents=True)
        content = sections | {"port": self.port, "upload_mb": 4, "total_mb": 60} | settings
        (folder / "studio.yaml").write_text(dump(StudioConfig.model_validate(content)))
        command = [sys.executable, "-m", "tfmammo.apps.studio", "--config", "studio.yaml"]
        self.path = folder / "log.txt"
        environment = os.environ | {"TMPDIR": str(self.temporary), "CUDA_VISIBLE_DEVICES": ""}
        with self.path.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log
            )

    @property
    def log(self):
        return self.path.read_text()

    def wait(self):
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and self.process.poll() is None:
            if "the studio is at" in self.log:
                return self
            time.sleep(0.2)
        raise AssertionError(self.log)

    def files(self):
        return [path for path in self.temporary.rglob("*") if path.is_file()]

    def kill(self):
        self.process.kill()
        self.process.wait()
