"""A scheduler and two workers on loopback, in processes of their own, as on a cluster."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from maskshards.preprocess.__main__ import main
from tests.preprocess.folder_build import build_words, contents

if find_spec("distributed") is None:
    pytest.skip("the extra 'dask' is not installed", allow_module_level=True)

CLUSTER = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None)
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
    cluster.close()
"""


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """The address of a cluster that lives as long as this module's tests."""
    script = tmp_path_factory.mktemp("cluster") / "cluster.py"
    script.write_text(CLUSTER)
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as cluster:
        yield cluster.stdout.readline().strip()
        cluster.stdin.close()
        cluster.wait(600)


def test_a_cluster_makes_the_same_bytes(make_root, tmp_path, scheduler):
    root = make_root(training=11, validation=2)
    assert main(build_words(root, tmp_path / "local")) == 0
    assert main(build_words(root, tmp_path / "dask", "--executor", "dask", "--scheduler", scheduler)) == 0
    assert contents(tmp_path / "dask") == contents(tmp_path / "local")


def test_faults_on_the_cluster_are_told_here(make_root, tmp_path, scheduler, capsys):
    root = make_root(training=5)
    (root / "images/training/training_0002.jpg").write_bytes(b"")
    assert main(build_words(root, tmp_path / "out", "--executor", "dask", "--scheduler", scheduler)) == 2
    assert "training_0002.jpg: the image file is empty" in capsys.readouterr().err
    (root / "sceneCategories.txt").write_text("one two three\n")
    options = ["--dataset", "ade20k", "--allow-count-mismatch", "--splits", "training", "--quiet"]
    more = ["--executor", "dask", "--scheduler", scheduler]
    assert main(["build", *options, "--root", str(root), "--out", str(tmp_path / "ade"), *more]) == 2
    assert "sceneCategories.txt, line 1" in capsys.readouterr().err


def test_a_scheduler_has_to_be_named(make_root, tmp_path, capsys):
    assert main(build_words(make_root(), tmp_path / "out", "--executor", "dask")) == 2
    assert "--executor dask needs --scheduler ADDRESS" in capsys.readouterr().err
