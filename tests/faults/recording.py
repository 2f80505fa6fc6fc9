"""MLflow's client, interrupted at a chosen one of the calls that change something."""

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

CHANGES = (
    "create_experiment", "create_run", "create_logged_model", "create_registered_model", "create_model_version",
    "log_batch", "log_inputs", "log_outputs", "log_artifact", "log_dict", "log_figure", "log_metric",
    "set_tag", "set_experiment_tag", "set_registered_model_alias", "set_logged_model_tags", "set_terminated",
    "log_model_artifact", "log_model_artifacts", "finalize_logged_model",
    "update_run", "delete_run",
)  # fmt: skip
FAULTS = ("killed before", "killed after", "answer lost")


class KilledError(BaseException):
    """What nothing catches."""


def interrupt(patch, fault, which):
    """Of the calls from here on that change something one suffers `fault`: that of number `which`, or the first of that name.

    Returns the names of the calls so far.
    """
    calls = []

    def wrapped(name, original):
        def call(*arguments, **options):
            calls.append(name)
            if which != len(calls) - 1 and (which != name or calls.count(name) > 1):
                return original(*arguments, **options)
            if fault == "killed before":
                raise KilledError
            original(*arguments, **options)
            if fault == "killed after":
                raise KilledError
            raise MlflowException(f"{name}: no answer")

        return call

    for name in CHANGES:
        patch.setattr(MlflowClient, name, wrapped(name, getattr(MlflowClient, name)))
    return calls
