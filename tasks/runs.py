"""The release's run in MLflow, and models loaded from it, through MLflow's own client.

Slow to import and informative only: nothing that moves traffic waits for it. Errors of MLflow
become `TrackingUnavailable` (try again) or `TrackingRefused` (do not).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.errors import ServingError, TransientError

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from tasks.genai import Example, Scores


class TrackingUnavailable(TransientError):
    """The MLflow server does not answer, or answers that it is overloaded."""


class TrackingRefused(ServingError):
    """MLflow answered that what was asked cannot be done."""


def prepare_environment(tracking_uri: str) -> None:
    """Point MLflow's client at one server, and let it give up in seconds instead of minutes."""
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


class Runs:
    """The verbs of MLflow's tracking that a release needs. All of them can be repeated."""

    def __init__(self, tracking_uri: str) -> None:
        prepare_environment(tracking_uri)
        self.tracking_uri = tracking_uri
        self._made: MlflowClient | None = None

    @property
    def _client(self) -> MlflowClient:
        if self._made is None:
            from mlflow import MlflowClient

            self._made = MlflowClient(self.tracking_uri)
        return self._made

    def open_run(self, endpoint: str, release_id: str, tags: Mapping[str, str]) -> str:
        """The run of a release, made where there is none: its id."""
        name = f"interlock/{endpoint}"
        with _translated(f"experiment {name}", self.tracking_uri):
            experiment = self._client.get_experiment_by_name(name)
            experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
            found = self._client.search_runs(
                [experiment_id], f"tags.`interlock.release` = '{release_id}'", max_results=1
            )
            if found:
                return str(found[0].info.run_id)
            run = self._client.create_run(
                experiment_id, run_name=release_id, tags={"interlock.release": release_id, **tags}
            )
            return str(run.info.run_id)

    def find_run(self, endpoint: str, release_id: str) -> str:
        """The id of a run that `open_run` made, "" where there is none."""
        name = f"interlock/{endpoint}"
        with _translated(f"experiment {name}", self.tracking_uri):
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                return ""
            wanted = f"tags.`interlock.release` = '{release_id}'"
            found = self._client.search_runs([experiment.experiment_id], wanted, max_results=1)
            return str(found[0].info.run_id) if found else ""

    def ended_runs(self, endpoint: str, names: str, *, since: float, before: float) -> list[str]:
        """Ids of the runs that `open_run` made under names LIKE this, ended in `since <= t < before`."""
        name, found, token = f"interlock/{endpoint}", [], None
        ended = f"attributes.end_time >= {int(since * 1000)} AND attributes.end_time < {int(before * 1000)}"
        with _translated(f"experiment {name}", self.tracking_uri):
            experiment = self._client.get_experiment_by_name(name)
            while experiment is not None:
                part = self._client.search_runs(
                    [experiment.experiment_id],
                    f"tags.`interlock.release` LIKE '{names}' AND {ended}",
                    page_token=token,
                )
                found += [str(run.info.run_id) for run in part]
                token = part.token
                if not token:
                    break
        return found

    def folders(self, run_id: str, folder: str) -> list[str]:
        """The paths of the folders inside a folder of a run's artifacts."""
        with _translated(f"artifacts of run {run_id}", self.tracking_uri):
            return [found.path for found in self._client.list_artifacts(run_id, folder) if found.is_dir]

    def delete(self, run_id: str, path: str) -> bool:
        """Delete a file or a folder of a run's artifacts. Returns whether it was there."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with _translated(f"artifact {path} of run {run_id}", self.tracking_uri):
            parent = path.rpartition("/")[0] or None
            if path not in {found.path for found in self._client.list_artifacts(run_id, parent)}:
                return False
            uri = str(self._client.get_run(run_id).info.artifact_uri)
            get_artifact_repository(uri, tracking_uri=self.tracking_uri).delete_artifacts(path)
            return True

    def run_url(self, run_id: str) -> str:
        """Where a person looks at a run."""
        if not run_id:
            return ""
        with _translated(f"run {run_id}", self.tracking_uri):
            experiment_id = self._client.get_run(run_id).info.experiment_id
        return f"{self.tracking_uri}/#/experiments/{experiment_id}/runs/{run_id}"

    def log_points(self, run_id: str, points: Iterable[tuple[str, float, int, int]]) -> None:
        """Metrics over time: (name, value, milliseconds since the epoch, step)."""
        from mlflow.entities import Metric

        batch = [Metric(name, value, time_ms, step) for name, value, time_ms, step in points]
        with _translated(f"metrics of run {run_id}", self.tracking_uri):
            for start in range(0, len(batch), 1000):
                self._client.log_batch(run_id, metrics=batch[start : start + 1000])

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Parameters of a run; setting the same again is a no-op."""
        from mlflow.entities import Param

        with _translated(f"parameters of run {run_id}", self.tracking_uri):
            self._client.log_batch(run_id, params=[Param(key, value[:5000]) for key, value in params.items()])

    def log_text(self, run_id: str, name: str, text: str) -> None:
        """A text artifact; writing it again replaces it."""
        with _translated(f"artifact {name} of run {run_id}", self.tracking_uri):
            self._client.log_text(run_id, text, name)

    def log_file(self, run_id: str, path: Path, folder: str) -> None:
        """A file as an artifact in a folder of the run; writing it again replaces it."""
        with _translated(f"artifact {path.name} of run {run_id}", self.tracking_uri):
            self._client.log_artifact(run_id, str(path), folder)

    def fetch(self, run_id: str, name: str, folder: Path) -> Path | None:
        """An artifact of a run as a local file; None where the run has none of this name."""
        from mlflow.artifacts import download_artifacts

        parent = name.rpartition("/")[0] or None
        with _translated(f"artifact {name} of run {run_id}", self.tracking_uri):
            if name not in {found.path for found in self._client.list_artifacts(run_id, parent)}:
                return None
            return Path(
                download_artifacts(
                    run_id=run_id, artifact_path=name, dst_path=str(folder), tracking_uri=self.tracking_uri
                )
            )

    def fetch_dataset(self, run_id: str, context: str, folder: Path) -> Path | None:
        """The data set that a run logged in a context ("training") as a local file; None without one."""
        import mlflow.data

        with _translated(f"the {context} data of run {run_id}", self.tracking_uri):
            for found in self._client.get_run(run_id).inputs.dataset_inputs:
                if {"mlflow.data.context": context} in [{tag.key: tag.value} for tag in found.tags]:
                    return Path(mlflow.data.get_source(found).load(str(folder)))
        return None

    def dataset_location(self, run_id: str, name: str, folder: Path) -> str:
        """Where the data set that a run logged under a name lies; downloaded where it has no address.

        Raises `TrackingRefused` where the run has none of that name, or only the code that made it.
        """
        import mlflow.data

        with _translated(f"data set {name} of run {run_id}", self.tracking_uri):
            logged = self._client.get_run(run_id).inputs.dataset_inputs
            found = next((one for one in logged if one.dataset.name == name), None)
            if found is None:
                names = ", ".join(sorted({one.dataset.name for one in logged})) or "none"
                raise TrackingRefused(
                    f"run {run_id} logged no data set {name!r}; it logged {names}. "
                    "Next: correct evaluation.data in the policy"
                )
            return _readable(mlflow.data.get_source(found), name, run_id, folder)

    def training_location(self, run_id: str, folder: Path) -> str | None:
        """Where the data lies that a run logged with the context "training"; None where it logged none.

        Raises `TrackingRefused` where only the code that made it is known.
        """
        import mlflow.data

        with _translated(f"the training data of run {run_id}", self.tracking_uri):
            for found in self._client.get_run(run_id).inputs.dataset_inputs:
                if "training" in [tag.value for tag in found.tags if tag.key == "mlflow.data.context"]:
                    source = mlflow.data.get_source(found)
                    return _readable(source, found.dataset.name, run_id, folder)
        return None

    def evaluation_dataset(self, name: str) -> tuple[pd.DataFrame, float]:
        """An MLflow evaluation dataset by name (or id, `d-...`) as a table, and when it last changed.

        Inputs are columns of their own names, expectations too. Records come in the order of their ids.
        """
        import pandas as pd
        from mlflow.genai.datasets import get_dataset

        with _translated(f"the MLflow dataset {name}", self.tracking_uri):
            import mlflow

            mlflow.set_tracking_uri(self.tracking_uri)
            found: Any = get_dataset(dataset_id=name) if name.startswith("d-") else get_dataset(name=name)
            frame = found.to_df()
        if frame.empty:
            return pd.DataFrame(), float(found.last_update_time) / 1000
        records = frame.sort_values("dataset_record_id").to_dict("records")
        rows = [{**(record["inputs"] or {}), **(record["expectations"] or {})} for record in records]
        return pd.DataFrame(rows), float(found.last_update_time) / 1000

    def signature(self, uri: str) -> dict[str, Any] | None:
        """Inputs and outputs of a model's signature, without loading the model; None where it has none."""
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)
        with _translated(f"the signature of {uri}", self.tracking_uri):
            return as_columns(mlflow.models.get_model_info(uri).signature)

    def evaluate(
        self,
        run_id: str,
        frame: pd.DataFrame,
        *,
        model_type: str | None,
        extra_metrics: list[Any],
        config: dict[str, Any],
    ) -> dict[str, float]:
        """MLflow's default evaluator on a frame with `label` and `prediction`: its metrics by name.

        Logged to the run, which stays open.
        """
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)
        with _translated(f"evaluating in run {run_id}", self.tracking_uri):
            # another experiment that is active in this process would refuse the run
            mlflow.set_experiment(experiment_id=self._client.get_run(run_id).info.experiment_id)
            try:
                with mlflow.start_run(run_id=run_id):
                    result: Any = mlflow.models.evaluate(
                        data=frame,
                        targets="label",
                        predictions="prediction",
                        model_type=model_type,
                        evaluators="default",
                        extra_metrics=extra_metrics or None,
                        evaluator_config=config,
                    )
            finally:
                self._client.update_run(run_id, status="RUNNING")
        return {name.split("/")[0]: float(value) for name, value in result.metrics.items()}

    def close_run(self, run_id: str, *, status: str, tags: Mapping[str, str]) -> None:
        """End a run with MLflow's status (FINISHED, FAILED, KILLED) and its tags."""
        self.tag_run(run_id, tags)
        with _translated(f"end of run {run_id}", self.tracking_uri):
            self._client.set_terminated(run_id, status=status)

    def tag_run(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        with _translated(f"tags of run {run_id}", self.tracking_uri):
            for key, value in tags.items():
                self._client.set_tag(run_id, key, value[:4000])

    def score(
        self,
        run_id: str,
        title: str,
        examples: Sequence[Example],
        scorers: Mapping[str, Callable[[str], float]],
    ) -> Scores:
        """Run scorers of answers in a child run, through `mlflow.genai.evaluate`; see `tasks.genai`."""
        import mlflow

        from tasks.genai import score_examples

        mlflow.set_tracking_uri(self.tracking_uri)
        with _translated(f"scores of run {run_id}", self.tracking_uri):
            return score_examples(self._client, run_id, title, examples, scorers)

    def load_model(self, uri: str) -> Any:
        """A version's model as MLflow's pyfunc, loaded into this process."""
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)
        with _translated(f"loading {uri}", self.tracking_uri):
            return mlflow.pyfunc.load_model(uri)


def as_columns(signature: Any) -> dict[str, Any] | None:
    """A signature of MLflow's as plain columns: {"inputs": [...], "outputs": [...]}."""
    if signature is None:
        return None
    return {
        "inputs": signature.inputs.to_dict() if signature.inputs else [],
        "outputs": signature.outputs.to_dict() if signature.outputs else [],
    }


def _readable(source: Any, name: str, run_id: str, folder: Path) -> str:
    """A data set's address, downloaded where only MLflow can read it."""
    address = str(getattr(source, "uri", "") or getattr(source, "url", "") or "")
    if not address:
        raise TrackingRefused(
            f"data set {name!r} of run {run_id} has no address to read it from. Next: log it with a source: "
            "mlflow.data.from_pandas(rows, source=PATH_OR_URL, name=...)"
        )
    if address.startswith(("runs:", "models:", "mlflow-artifacts:", "dbfs:")):
        return str(source.load(str(folder)))
    return address.removeprefix("file://")


@contextmanager
def _translated(asked: str, tracking_uri: str) -> Generator[None]:
    """Turn MLflow's errors into ours, once."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        raise TrackingUnavailable(
            f"{asked}: the MLflow server {tracking_uri} does not answer ({error.__class__.__name__}). "
            "Next: interlock doctor; the same command continues when it is back"
        ) from error
    except MlflowException as error:
        passing = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
        text = str(error)[:300]
        if error.error_code in passing and "API request to" in text:
            raise TrackingUnavailable(f"{asked}: MLflow at {tracking_uri}: {text}") from error
        raise TrackingRefused(f"{asked}: MLflow answered {error.error_code}: {text}") from error
