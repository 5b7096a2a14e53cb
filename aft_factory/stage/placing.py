"""The settings of every command that may have what answers on Ray."""

from __future__ import annotations

from dataclasses import dataclass

from aft_factory.stage.declaring import setting
from aft_factory.stage.reading import at_least

RAY = "on several GPUs or machines"  # heading of `--help`


@dataclass(frozen=True)
class RaySettings:
    """Where models run: in this process or, as replicas, on Ray; see the help texts.

    To be mixed into a command's settings: hence no slots, as for rewards.
    """

    ray: str | None = setting(
        None,
        "replicas of what answers on a Ray cluster: the one at ADDRESS, such as auto (this "
        "machine's), or on this machine alone",
        "ADDRESS",
        bare="local",
        group=RAY,
    )
    replicas: int | None = setting(
        None, "with --ray: how many (default: as many as there are GPUs for)", "N", group=RAY
    )

    def ray_problems(self, elsewhere: str | None) -> list[str]:
        """Return what is wrong with the settings.

        Args:
            elsewhere: The flag that has nothing loaded here; None where a model is.
        """
        problems = at_least(self, ("replicas", 1))
        if self.replicas is not None and self.ray is None:
            problems.append("replicas: needs --ray; say `ray: local` for this machine alone")
        if self.ray is not None and elsewhere:
            problems.append(f"ray: for a model that this command loads, not for {elsewhere}")
        return problems
