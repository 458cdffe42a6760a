"""A run with every tracker: they show the values of results.json and metrics.csv."""

import csv
import json

import pytest

pytest.importorskip("mlflow")
pytest.importorskip("tensorboard")


def test_tensorboard_and_mlflow_record_the_run(train_here):
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = train_here(
        *("+experiment=sequential", "tasks=[wine,iris]", "trainer.max_epochs=3", "logger=[csv,tensorboard,mlflow]"),
        *("owner_maps=1", "pruning.begin=0.3", "pruning.end=0.7"),
    )
    results = json.loads((folder / "results.json").read_text())
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    board.Reload()
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("sequential").experiment_id])
    for key in ("wine/train/loss", "iris/val/accuracy", "iris/sparsity", "wine/test/accuracy", "capacity/free"):
        logged = [(int(row["step"]), pytest.approx(float(row[key]))) for row in rows if row[key]]
        assert [(event.step, event.value) for event in board.Scalars(key)] == logged, key
        history = client.get_metric_history(run.info.run_id, key)
        assert sorted((point.step, point.value) for point in history) == logged, key
    for task, row in results["tasks"].items():
        assert board.Scalars(f"score/{task}")[-1].value == pytest.approx(row["test"])
        assert run.data.metrics[f"score/{task}"] == row["test"]
        assert run.data.metrics[f"owned/{task}"] == pytest.approx(row["density"])
    assert run.data.metrics["guarantee/violations"] == 0
    assert run.data.tags["guarantee.verdict"] == "held: 1 compared, 0 changed"
    assert run.data.params["pruning/density"] == "0.1"
    assert run.info.status == "FINISHED"
    bitmaps = {"matrix/heat_map", "capacity/bars", "owner_maps/layers.1.weight"}
    assert set(board.Tags()["images"]) == bitmaps
    kept = {
        item.path
        for name in ("matrix", "capacity", "owner_maps", "scores")
        for item in client.list_artifacts(run.info.run_id, name)
    }
    assert kept == {f"{name}.png" for name in bitmaps} | {"matrix/table.csv", "capacity/table.csv", "scores/table.csv"}
    assert not (folder.parent / "mlruns").exists()
