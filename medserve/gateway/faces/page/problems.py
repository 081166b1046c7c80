"""What only a browser can meet: errors of the page beside those that every face shares."""

from __future__ import annotations

from medserve.errors import MedserveError

__all__ = ["ForeignSiteError", "QuotaError", "SlowUploadError", "UnknownJobError"]


class UnknownJobError(MedserveError):
    """No such job, or none of this visitor: the two cannot be told apart from outside."""

    code = "UNKNOWN_JOB"
    grpc_status = "NOT_FOUND"
    http_status = 404


class QuotaError(MedserveError):
    """The visitor, or all of them together, stored as much as the page takes."""

    code = "QUOTA"
    grpc_status = "RESOURCE_EXHAUSTED"
    http_status = 429


class SlowUploadError(MedserveError):
    """An upload went silent or took too long."""

    code = "SLOW_UPLOAD"
    grpc_status = "DEADLINE_EXCEEDED"
    http_status = 408


class ForeignSiteError(MedserveError):
    """The request came from another site, or to a host name that is not ours."""

    code = "FOREIGN_SITE"
    grpc_status = "PERMISSION_DENIED"
    http_status = 403
