"""Errors whose text is written for the person who wrote the manifest.

Every error names the field or the file, the value, and the remedy. Whatever else is raised is a defect of Ireko
and is reported as such.
"""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can mend; the message says what and how."""

    reason = "InvalidInput"


class NothingFitsError(UserError):
    """No member of the family satisfies a device target."""

    reason = "NothingFits"


class DivergedError(UserError):
    """The loss became NaN or infinite."""

    reason = "Diverged"


class StorageFullError(UserError):
    """The storage, or the disk under the database of MLflow, has no room left."""

    reason = "StorageFull"


class StorageNotWritableError(UserError):
    """The storage cannot be written, or not be reached."""

    reason = "StorageNotWritable"


class InterruptedRunError(Exception):
    """The run was asked to stop; its state is saved and the same command goes on."""

    reason = "Interrupted"
