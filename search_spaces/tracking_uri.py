"""Which addresses of MLflow may be written into a study; apart from MLflow, so that a mistake costs no import."""

from __future__ import annotations

from urllib.parse import urlsplit

SERVERS = ("http", "https")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def tracking_problem_of(uri: str) -> str | None:
    """Why MLflow cannot be reached there, or None; what may be a secret in it is not repeated."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "must be http://HOST:PORT or the URL of a database"
    if "@" in uri or parts.query or parts.fragment:
        return (
            "must hold no credentials (no @) and no options, as it is kept in the study: they come from "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of the environment"
        )
    kind = parts.scheme.partition("+")[0]
    if kind not in (*SERVERS, *DATABASES) or (kind in SERVERS and not parts.hostname):
        return (
            "must be http://HOST:PORT or the URL of a database, as MLflow no longer keeps runs in plain files "
            "(sqlite:////DIR/mlflow.db is one file)"
        )
    return None
