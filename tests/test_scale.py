"""examples/kubernetes-train.yaml and examples/slurm-train.sbatch are whole and do what docs/scale.md says.

The commands in them are parsed and run small by test_documented_commands.py.
"""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from maskshards.train.config.checks import check_config
from maskshards.train.config.load import load_config

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "examples" / "slurm-train.sbatch"
GIB = 2**30


@pytest.fixture(scope="module")
def documents():
    """(Service, Job) of the manifest."""
    return tuple(yaml.safe_load_all((ROOT / "examples" / "kubernetes-train.yaml").read_text()))


@pytest.fixture(scope="module")
def pod(documents):
    return documents[1]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def launch(pod):
    """What torchrun makes of the container's command."""
    (container,) = pod["containers"]
    shell, flag, line = container["command"]
    assert (shell, flag) == ("sh", "-c")
    program, launcher, *words = line.replace("$JOB_COMPLETION_INDEX", "1").split()
    assert (program, launcher) == ("exec", "torchrun")  # so that SIGTERM reaches torchrun, not a shell
    return get_args_parser().parse_args(words)


def test_pods_find_each_other(documents, pod, launch):
    service, job = documents
    name = job["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert launch.master_addr == f"{name}-0.{pod['subdomain']}"


def test_one_pod_a_node_and_one_process_a_gpu(documents, pod, launch):
    spec = documents[1]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(launch.nnodes)
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == int(launch.nproc_per_node)
    assert launch.node_rank == 1


def test_the_job_trains_with_a_good_config_and_continues(pod, launch, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, *words = launch.training_script_args
    assert (launch.no_python, launch.training_script, command) == (True, "maskshards", "train")
    config = load_config(words)
    check_config(config)
    assert config.resume_from == "auto"
    assert pod["restartPolicy"] == "OnFailure"


def test_a_stopped_pod_has_time_to_save(pod):
    (patience,) = (entry["value"] for entry in pod["containers"][0]["env"])
    assert 30 < int(patience) < pod["terminationGracePeriodSeconds"]


def test_places_are_on_volumes(pod, launch, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(launch.training_script_args[1:])
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {
        mount["mountPath"]: volumes.pop(mount["name"]) for mount in pod["containers"][0]["volumeMounts"]
    }
    assert volumes == {}
    for place in (config.output_dir, config.model.weights):
        assert "persistentVolumeClaim" in mounts[f"/{place.split('/')[1]}"]
    cache = mounts[config.loader.cache_dir]["emptyDir"]
    assert config.loader.cache_gb * 1e9 < int(cache["sizeLimit"].removesuffix("Gi")) * GIB


def test_the_script_is_good_bash():
    done = subprocess.run(["bash", "-n", SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_script_asks_for_a_signal_before_its_end():
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.M))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["signal"].startswith("USR1@")
    assert "requeue" in options


@pytest.mark.parametrize(("status", "again"), [(0, ""), (1, ""), (128 + signal.SIGUSR1, "requeue 77\n")])
def test_the_script_comes_back_after_the_time_limit_only(tmp_path, status, again):
    """A fake srun ends as the ranks would."""
    for name, body in (("srun", f"exit {status}"), ("scontrol", f'echo "$@" > {tmp_path}/asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    done = subprocess.run(["bash", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else "") == again
