"""Jobs of submitit that are lost: the others' results are kept."""

import logging

import pytest

from msh.cli.submitit_jobs import tolerate_lost_jobs

submitit = pytest.importorskip("submitit", reason="msh[slurm] is not installed")
launchers = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.submitit_launcher")


def test_a_lost_job_has_no_result_and_others_have_theirs(tmp_path, monkeypatch, caplog):
    def results(job):
        if job.job_id == "1":
            raise submitit.core.utils.UncompletedJobError("Job 1 was killed.\nmore")
        return [0.8]

    executors = submitit.local.local.LocalExecutor, submitit.slurm.slurm.SlurmExecutor
    for executor in executors:
        monkeypatch.setattr(executor.job_class, "results", results)
        monkeypatch.setattr(executor, "job_class", executor.job_class)
    for _ in range(2):  # as each launch of a search does
        tolerate_lost_jobs(launchers.LocalLauncher())
    for executor in executors:
        jobs = [executor.job_class(tmp_path, job_id=number) for number in ("0", "1", "2")]
        with caplog.at_level(logging.ERROR):
            assert [job.results() for job in jobs] == [[0.8], [None], [0.8]]
    assert [record.getMessage() for record in caplog.records] == ["job 1 was lost: Job 1 was killed."] * 2


def test_other_launchers_need_no_submitit():
    tolerate_lost_jobs(object())
