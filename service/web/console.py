"""The console of an application: its pages beside the REST API."""

from __future__ import annotations

from fastapi import FastAPI

from service.web import (
    compare,
    documentation,
    job,
    job_attempts,
    job_curves,
    job_files,
    job_logs,
    job_normalisation,
    jobs,
    overview,
    settings,
    signing_in,
    static_files,
    submit,
    sweeps,
)


def install(app: FastAPI) -> None:
    """Adds the pages to the application that `service.api.app.create_app` has made."""
    shared = (signing_in, static_files, overview, jobs, compare, sweeps, submit, settings)
    of_jobs = (job, job_curves, job_logs, job_attempts, job_files, job_normalisation)
    for pages in (*shared, *of_jobs):
        app.include_router(pages.router)
    app.state.documentation = documentation.documentation_page
