"""A PACS for tests: Debian's Orthanc with its DICOMweb plugin, on free ports of this machine."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.ports import find_free_ports

USER = "reader"
PASSWORD = "not-a-patient"
AUTHORIZATION = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
AE_TITLE = "TESTPACS"
CALLER = "TFMAMMO"
_PROGRAMS = ("/usr/sbin/Orthanc", "/usr/bin/Orthanc")
_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


class Orthanc:
    """One server with a folder of its own, which it keeps when it is stopped and started again."""

    def __init__(self, root: Path) -> None:
        self._program = shutil.which("Orthanc") or next(filter(os.path.exists, _PROGRAMS), None)
        if self._program is None or not _PLUGIN.exists():
            pytest.skip("no PACS: apt-get install orthanc orthanc-dicomweb dcmtk")
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None
        self._port, dicom_port, listen_port = find_free_ports(3)
        # addresses, and where it sends what a C-MOVE asks for
        self.web = f"dicomweb+http://127.0.0.1:{self._port}/dicom-web"
        self.dimse = f"dimse://{AE_TITLE}@127.0.0.1:{dicom_port}"
        self.listen = f"127.0.0.1:{listen_port}"
        config = {
            "StorageDirectory": str(root / "storage"),
            "IndexDirectory": str(root / "storage"),
            "Plugins": [str(_PLUGIN)],
            "HttpPort": self._port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "DicomAet": AE_TITLE,
            "DicomPort": dicom_port,
            "DicomCheckCalledAet": True,
            "DicomCheckModalityHost": True,
            "DicomAlwaysAllowEcho": False,
            "DicomAlwaysAllowStore": False,
            "DicomModalities": {"caller": [CALLER, "127.0.0.1", listen_port]},  # who may do all
            "OverwriteInstances": False,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        root.mkdir(parents=True, exist_ok=True)
        (root / "orthanc.json").write_text(json.dumps(config))

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log = (self._root / "log.txt").open("ab")
        command = [self._program, str(self._root / "orthanc.json")]
        self._process = subprocess.Popen(command, stdout=log, stderr=log)
        log.close()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                self.ask("/system")
                return
            except requests.RequestException:
                assert self._process.poll() is None, "Orthanc ended"
                time.sleep(0.1)
        raise AssertionError("Orthanc does not answer")

    def kill(self) -> None:
        """Kill it (SIGKILL), as a power failure would."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ask(self, path: str, **options: Any) -> Any:
        """Ask its own interface, which is not that of DICOMweb: JSON, or bytes of a file."""
        url = f"http://127.0.0.1:{self._port}{path}"
        options = {"method": "GET", "auth": (USER, PASSWORD), "timeout": 60} | options
        answer = requests.request(url=url, **options)
        answer.raise_for_status()
        is_json = "json" in answer.headers.get("Content-Type", "")
        return answer.json() if is_json else answer.content

    def upload(self, path: Path) -> None:
        """Store a file, not over DICOMweb."""
        self.ask("/instances", method="POST", data=path.read_bytes())

    def download(self, folder: Path) -> list[Path]:
        """Write every instance into a folder, as it is stored."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for instance in self.ask("/instances"):
            paths.append(folder / f"{instance}.dcm")
            paths[-1].write_bytes(self.ask(f"/instances/{instance}/file"))
        return paths

    def clear(self) -> None:
        """Remove all that it holds."""
        for patient in self.ask("/patients"):
            self.ask(f"/patients/{patient}", method="DELETE")


@contextmanager
def run_orthanc(root: Path) -> Iterator[Orthanc]:
    """Run a server until the end, whatever happens."""
    server = Orthanc(root)
    try:
        server.start()
        yield server
    finally:
        server.kill()
