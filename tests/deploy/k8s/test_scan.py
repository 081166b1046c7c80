"""checkov over what an operator applies: `make scan` installs it, in an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.k8s.rendering import K8S, Manifest

CHECKOV = shutil.which("checkov") or shutil.which(str(K8S.parent / "build/checkov/bin/checkov"))
# What it asks for and these manifests leave to the overlay of a cluster, or do not have.
KNOWN = {
    "CKV_K8S_15": "always pulling: images of a laptop are in no registry",
    "CKV_K8S_43": "digests: known only once an image is in the operator's registry",
}
OF_JOBS = {
    "CKV_K8S_8": "a probe of a pod that ends by itself",
    "CKV_K8S_9": "a probe of a pod that ends by itself",
    "CKV2_K8S_6": "the policies are those of the base, which lies in another file",
}


@pytest.mark.skipif(CHECKOV is None, reason="needs checkov (make scan)")
@pytest.mark.process
@pytest.mark.parametrize("name", ["local", "production", "gateway-api", "jobs"])
def test_a_scanner_finds_nothing_that_is_not_explained(
    name: str, rendered: dict[str, list[Manifest]], tmp_path: Path
) -> None:
    assert CHECKOV is not None
    path = tmp_path / "rendered.yaml"
    path.write_text(yaml.safe_dump_all(rendered[name]), encoding="utf-8")
    command = [CHECKOV, "--file", str(path), "--framework", "kubernetes", "--skip-download"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(
        [*command, "--output", "json"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    report = json.loads(run.stdout)
    assert report["summary"]["passed"] > 50
    failed = {each["check_id"] for each in report["results"]["failed_checks"]}
    assert failed - KNOWN.keys() - (OF_JOBS.keys() if name == "jobs" else set()) == set()
