"""What the header of a network's file says after a tool has made it from others. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

HASHES = ("sshs_model_hash", "sshs_legacy_hash")  # of the tensors, which are others now
OF_A_RUN = ("ss_session_id", "ss_training_started_at", "ss_training_finished_at", "ss_output_name")
DYNAMIC = "Dynamic"  # kohya's word for layers of different ranks


def carried(metadata: Mapping[str, str]) -> dict[str, str]:
    """What still holds of a file whose tensors are others now."""
    return {name: value for name, value in metadata.items() if name not in HASHES}


def joined(headers: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What all of several files say alike."""
    first, *others = headers
    same = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
    return {name: value for name, value in carried(same).items() if not others or name not in OF_A_RUN}


def ranks(dims: Sequence[int], alphas: Sequence[float]) -> dict[str, str]:
    """kohya's entries for rank and alpha."""
    same = len(set(dims)) == 1 and len({round(alpha, 6) for alpha in alphas}) == 1
    return {
        "ss_network_dim": str(dims[0]) if same else DYNAMIC,
        "ss_network_alpha": f"{alphas[0]:g}" if same else DYNAMIC,
    }
