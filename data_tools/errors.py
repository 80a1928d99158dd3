"""Errors for people, and the exit codes of every command of this project.

| code | meaning                    | class           |
|------|----------------------------|-----------------|
| 0    | finished                   |                 |
| 2    | usage or recipe            | `RecipeError`, `UsageError` |
| 3    | data                       | `DataError`     |
| 4    | environment                | `SetupError`    |
| 5    | training diverged or stopped | `TrainingError` |

A message names the key, its value, the rule and the remedy; where the value came from a file
it starts with `file:line:`. Bugs of ours are `assert`s and keep their traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """An error that the user can mend; printed without a traceback."""

    exit_code = 2


class UsageError(UserError):
    """A wrong command line."""


class RecipeError(UserError):
    """A recipe, plan or layout that cannot be carried out as written."""


class DataError(UserError):
    """Data that is missing, damaged, changed, or does not fit the recipe."""

    exit_code = 3


class SetupError(UserError):
    """The machine lacks something that was asked for."""

    exit_code = 4


class TrainingError(UserError):
    """A run that diverged or was stopped."""

    exit_code = 5
