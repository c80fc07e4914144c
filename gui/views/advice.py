"""What to do about what went wrong, as sentences for the page. No widget here."""

from __future__ import annotations

from trainer.runs import failures


def of_failure(error: str, advice: str = "", kind: str = "") -> list[str]:
    """What to change after an error; the trainer's own advice where its kind is not known.

    `kind`: what the trainer said it is; "" where it could not say, and the words decide.
    """
    failure = failures.KINDS.get(kind or failures.kind_of_words(error))
    if failure is None:
        return [advice] if advice else []
    return [f"{failure.title} {failure.ways_out[0]}", *failure.ways_out[1:]]


def of_disappearance(exit_code: int | None) -> str:
    """Why a process may have ended without a message. `exit_code`: minus the signal where that is known."""
    if exit_code in (-9, 137):
        return (
            "It was killed (SIGKILL). Unless that was you, the machine's own memory ran out and the system chose this "
            "process: lower max_data_loader_n_workers and train_batch_size, or close other programs."
        )
    if exit_code in (-11, -7, -4, 139):
        return "It crashed inside a library (a segmentation fault or the like): a driver or a package is at fault."
    return "It was killed, it crashed, or the power failed."
